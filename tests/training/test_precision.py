"""Which tensor has which type under autocast: the table of docs/train.md, read off a real step."""

import pytest
import torch
from torch import nn

from puna.model.batch import Batch
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer
from puna.training.step import train_step

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WIDE = torch.float32


def types_seen(model, precision: str) -> dict[str, set[torch.dtype]]:
    """The types that a step gave to each kind of tensor, by the kind's name in the table."""
    seen: dict[str, set[torch.dtype]] = {}

    def note(kind: str, *tensors: torch.Tensor) -> None:
        seen.setdefault(kind, set()).update(tensor.dtype for tensor in tensors)

    for block in model.layers:
        block.register_forward_hook(lambda _, args, out: note("stream", args[0], out))
        block.self_attn.register_forward_hook(lambda _, args, out: note("product", out))
        block.mlp.register_forward_hook(lambda _, args, out: note("product", out))
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.register_forward_hook(lambda _, args, out: note("norm", args[0], out))
    model.lm_head.register_forward_hook(lambda _, args, out: note("logits", out))
    rows = torch.randint(512, (2, 13), generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, TrainingConfig(budget=StepBudget(steps=1)))
    batch = Batch(ids_BT=rows[:, :-1], targets_BT=rows[:, 1:])
    train_step(model, optimizer, [batch], rate=1e-3, clip=1.0, precision=precision)
    note("weight", *model.parameters())
    note("gradient", *(weight.grad for weight in model.parameters()))
    note(
        "moment",
        *(optimizer.state[weight][name] for weight in model.parameters() for name in ("exp_avg", "exp_avg_sq")),
    )
    return seen


@pytest.mark.parametrize("precision", TYPES)
def test_a_step_uses_the_types_of_the_table(tiny: nn.Module, precision) -> None:
    narrow = {TYPES[precision]}
    assert types_seen(tiny, precision) == {
        "weight": {WIDE},
        "gradient": {WIDE},
        "moment": {WIDE},
        "stream": {WIDE},
        "norm": {WIDE},
        "product": narrow,
        "logits": narrow,
    }


@pytest.mark.parametrize(("dtype", "lost"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
def test_without_a_float32_copy_a_small_update_is_lost(dtype, lost) -> None:
    one = torch.ones((), dtype=dtype)
    assert one + lost == one
    assert one.float() + lost > one.float()
