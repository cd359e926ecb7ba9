"""What predictions lose in nats, without ever holding the (tokens x vocabulary) logits.

    against targets:         -(1/N) sum over kept targets of ln softmax(W h_t)[target_t]            cross-entropy
    against another model:    (1/N) sum over kept tokens of KL(softmax(W' h'_t) || softmax(W h_t))  distillation

Tokens are taken a chunk at a time: logits, which become their own gradient, and at once the gradients of h and W; then
they are dropped. The loss is a sum, so the gradients only need scaling when the backward pass arrives. docs/math.md 1.10.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from puna.model.linears.kind import AnyLinear

__all__ = ["Nats", "chunked_kl", "chunked_nats", "token_nats"]

_CHUNK_LOGITS = 1 << 22  # 4 M float32 logits, 16 MiB: larger products leave the cache (docs/findings.md 2)
_SLICE_LOGITS = 1 << 20  # of a chunk, so many become their gradient at a time: nothing else of its size exists
_CHUNK_TOKENS = 256  # but at least so many tokens: products of fewer rows are slow, and re-read the head (finding 28)


_Score = Callable[[slice, Tensor, bool], Tensor]  # of rows and their logits, summed; True: they become their gradient


@dataclass(frozen=True, slots=True)
class Nats:
    """Summed negative log-likelihood and how many targets it counts: added, never averaged, until the last moment."""

    sum: Tensor
    count: int

    def __add__(self, other: "Nats") -> "Nats":
        return Nats(self.sum + other.sum, self.count + other.count)

    @property
    def mean(self) -> float:
        """Nats per target."""
        return float(self.sum.detach()) / self.count


def chunked_nats(head: AnyLinear, hidden_BTD: Tensor, targets_BT: Tensor, keep_BT: Tensor | None = None) -> Nats:
    """Differentiable nats of the kept targets; the head may be any Linear.

    Returns: a float64 sum. Gradients are formed now if anything needs them, so call `backward` on the sum or a multiple.
    """
    hidden_ND, targets_N = _kept(keep_BT, hidden_BTD.flatten(0, -2), targets_BT.flatten())

    def score(rows: slice, logits_CV: Tensor, backward: bool) -> Tensor:
        return _sliced(_cross_entropy, backward, logits_CV, targets_N[rows])

    return _chunked(head, hidden_ND, score)


def chunked_kl(
    head: AnyLinear,
    hidden_BTD: Tensor,
    reference_head: AnyLinear,
    reference_BTD: Tensor,
    keep_BT: Tensor | None = None,
) -> Nats:
    """Differentiable KL(reference || model) of the kept tokens' predictions, over the whole vocabulary.

    Args:    reference_head, reference_BTD: another model's head and what it reads; nothing of them is learned.
    Returns: as chunked_nats.
    """
    hidden_ND, reference_ND = _kept(keep_BT, hidden_BTD.flatten(0, -2), reference_BTD.detach().flatten(0, -2))

    def score(rows: slice, logits_CV: Tensor, backward: bool) -> Tensor:
        with torch.no_grad():
            reference_CV = reference_head(reference_ND[rows])
        return _sliced(_divergence, backward, logits_CV, reference_CV)

    return _chunked(head, hidden_ND, score)


@torch.no_grad()
def token_nats(head: AnyLinear, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    """nats_BT in float32, one for each target, no gradient."""
    hidden_ND, targets_N = hidden_BTD.flatten(0, -2), targets_BT.flatten()
    nats_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_ND.device)
    for rows in _chunks(head, len(targets_N)):
        logits_CV = head(hidden_ND[rows]).float()
        nats_N[rows] = logits_CV.logsumexp(-1) - logits_CV.gather(-1, targets_N[rows, None]).squeeze(-1)
    return nats_N.view(targets_BT.shape)


def _kept(keep_BT: Tensor | None, *rows_N: Tensor) -> tuple[Tensor, ...]:
    if keep_BT is None:
        return rows_N
    kept = keep_BT.flatten().nonzero().squeeze(1)
    return tuple(each[kept] for each in rows_N)


def _chunked(head: AnyLinear, hidden_ND: Tensor, score: _Score) -> Nats:
    weights = tuple(weight for weight in head.parameters() if weight.requires_grad and torch.is_grad_enabled())
    return Nats(_ChunkedSum.apply(head, hidden_ND, score, *weights), len(hidden_ND))


class _ChunkedSum(torch.autograd.Function):
    """Sum of a score over all rows; the backward pass scales what the forward pass has already formed."""

    @staticmethod
    def forward(ctx: Any, head: AnyLinear, hidden_ND: Tensor, score: _Score, *weights: Tensor) -> Tensor:
        ctx.hidden_needs_grad = hidden_ND.requires_grad
        hidden_gradient = torch.zeros_like(hidden_ND) if ctx.hidden_needs_grad else None
        weight_gradients = [torch.zeros_like(weight) for weight in weights]
        total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
        for rows in _chunks(head, len(hidden_ND)):
            h_CD = hidden_ND[rows].detach().requires_grad_(ctx.hidden_needs_grad)
            gradients = dict(zip(weights, weight_gradients, strict=True))
            if hidden_gradient is not None:
                gradients[h_CD] = hidden_gradient[rows]
            total += _add_chunk(head, h_CD, partial(score, rows), gradients)
        ctx.save_for_backward(hidden_gradient, *weight_gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *weights = (None if g is None else g * upstream[0].to(g.dtype) for g in ctx.saved_tensors)
        return None, hidden, None, *weights


def _add_chunk(
    head: AnyLinear, h_CD: Tensor, score: Callable[[Tensor, bool], Tensor], gradients: dict[Tensor, Tensor]
) -> Tensor:
    """Summed nats of a chunk, its gradients added to the sums by leaf; nothing of it outlives the call."""
    with torch.enable_grad():
        logits_CV = head(h_CD)
    edge = get_gradient_edge(logits_CV) if gradients else None  # taken first: the logits are then written over
    made_CV = logits_CV.detach()
    nats = score(made_CV, bool(gradients))
    if edge is not None:
        parts = torch.autograd.grad(edge, list(gradients), made_CV)
        for total, part in zip(gradients.values(), parts, strict=True):
            total += part
    return nats


def _sliced(
    score: Callable[[Tensor, Tensor, bool], Tensor],
    backward: bool,
    logits_CV: Tensor,
    against_C: Tensor,
) -> Tensor:
    """A score a few rows at a time: what it makes is then small beside the logits."""
    size = max(1, _SLICE_LOGITS // logits_CV.shape[-1])
    slices = zip(logits_CV.split(size), against_C.split(size), strict=True)
    return torch.stack([score(*each, backward) for each in slices]).sum()


def _cross_entropy(logits_CV: Tensor, targets_C: Tensor, backward: bool) -> Tensor:
    """Summed nats; the logits become softmax - onehot in place. Both are formed in float32 or wider."""
    log_probabilities_CV = _log_softmax(logits_CV)
    target_C1 = targets_C[:, None]
    nats = -log_probabilities_CV.gather(-1, target_C1).sum(dtype=torch.float64)
    if backward:
        gradient_CV = log_probabilities_CV.exp_()
        gradient_CV.scatter_add_(-1, target_C1, gradient_CV.new_full((1, 1), -1.0).expand_as(target_C1))
        logits_CV.copy_(gradient_CV)
    return nats


def _divergence(logits_CV: Tensor, reference_CV: Tensor, backward: bool) -> Tensor:
    """Summed KL(q || p) of the reference's q and the model's p; the logits become p - q in place. In float32 or wider."""
    log_p_CV, log_q_CV = _log_softmax(logits_CV), _log_softmax(reference_CV)
    q_CV = log_q_CV.exp()
    nats = log_q_CV.sub_(log_p_CV).mul_(q_CV).sum(dtype=torch.float64)
    if backward:
        logits_CV.copy_(log_p_CV.exp_().sub_(q_CV))
    return nats


def _log_softmax(logits_CV: Tensor) -> Tensor:
    return torch.log_softmax(logits_CV, dim=-1, dtype=torch.promote_types(logits_CV.dtype, torch.float32))


def _chunks(head: AnyLinear, tokens: int) -> Iterator[slice]:
    size = max(_CHUNK_TOKENS, _CHUNK_LOGITS // head.out_features)
    for start in range(0, tokens, size):
        yield slice(start, start + size)
