"""One optimizer step: the gradient of the mean over all kept targets of all its micro-batches, then the update.

    gradient = sum over micro-batches, sum over targets / N,  N = kept targets of the whole step

so that the split into micro-batches changes nothing but rounding. What is not finite never lands. In float16 the loss is
scaled on the way back, and the gradient of the float32 weights scaled down again before it is looked at.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from puna.errors import BadData
from puna.model.batch import Batch
from puna.model.llama import Llama
from puna.model.loss import Nats, chunked_nats
from puna.model.norms import remember_statistics
from puna.training.config import Precision

__all__ = ["Loss", "StepOutcome", "autocast", "batch_nats", "train_step"]

Loss = Callable[[Llama, Batch], Nats]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What one step saw: mean nats, how many targets, the gradient's norm before clipping; whether the update was applied."""

    nats: float
    targets: int
    gradient_norm: float

    @property
    def is_loss_finite(self) -> bool:
        """Whether the way forward gave a number."""
        return math.isfinite(self.nats)

    @property
    def is_applied(self) -> bool:
        """Whether the parameters were changed: only by finite numbers."""
        return self.is_loss_finite and math.isfinite(self.gradient_norm)


_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Products in the given precision; weights, norms, softmax, angles and loss stay float32."""
    return torch.autocast(device.type, dtype=_TYPES[precision], enabled=precision != "float32")


def batch_nats(model: Llama, batch: Batch) -> Nats:
    """Differentiable nats of a batch's kept targets."""
    hidden_BTD = model.hidden(batch.ids_BT, batch.positions_BT, batch.documents_BT)
    return chunked_nats(model.lm_head, hidden_BTD, batch.targets_BT, batch.keep_BT)


def train_step(
    model: Llama,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    *,
    rate: float,
    clip: float,
    precision: Precision,
    scale: float = 1.0,
    loss: Loss = batch_nats,
    should_stop: Callable[[], bool] = lambda: False,
) -> StepOutcome | None:
    """Change the trainable parameters once, unless the loss or the gradient is not finite: then nothing is changed.

    Args:   rate: learning rate of this step; clip: the gradient's largest norm; batches may lie on any device.
            scale: of the loss on the way back, a power of two. loss: differentiable nats of a batch, summed.
            should_stop: looked at between two micro-batches; the step is then dropped, nothing is changed: None.
    Errors: BadData (no target), before anything is changed.
    """
    device = model.device
    targets = sum(batch.targets for batch in batches)
    if targets == 0:
        raise BadData(
            "a step without a single target to learn", "check the records: is every answer masked or cut off?"
        )
    optimizer.zero_grad(set_to_none=True)
    model.train()
    put_back = remember_statistics(model)
    total = 0.0
    for number, batch in enumerate(batches):
        if number and should_stop():
            _drop(optimizer, put_back)
            return None
        with autocast(precision, device):
            nats = loss(model, batch.to(device))
        (nats.sum * (scale / targets)).backward()
        total += float(nats.sum.detach())
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if scale != 1:
        torch._foreach_div_([weight.grad for weight in weights if weight.grad is not None], scale)
    norm = float(nn.utils.clip_grad_norm_(weights, clip, foreach=True))
    outcome = StepOutcome(nats=total / targets, targets=targets, gradient_norm=norm)
    if not outcome.is_applied:
        _drop(optimizer, put_back)
        return outcome
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_ratio", 1.0)
    optimizer.step()
    return outcome


def _drop(optimizer: Optimizer, put_back: Callable[[], None]) -> None:
    """Forget a step's gradients, and what a BatchNorm measured in it."""
    optimizer.zero_grad(set_to_none=True)
    put_back()
