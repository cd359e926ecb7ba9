"""Every kind of Linear is the dense weight that it says it is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from puna.model.linears.adapter import LoraSettings
from puna.model.linears.int8 import Int8Linear
from puna.model.linears.kind import AnyLinear, dense_weight
from puna.model.linears.lora import LoraLinear
from puna.model.linears.low_rank import LowRankLinear
from puna.model.linears.nf4 import Nf4Linear


def weight(out: int = 6, into: int = 10) -> Tensor:
    return torch.randn(out, into, generator=torch.Generator().manual_seed(0))


def dense() -> nn.Linear:
    linear = nn.Linear(10, 6, bias=False)
    linear.weight = nn.Parameter(weight())
    return linear


def low_rank() -> LowRankLinear:
    return LowRankLinear(weight(6, 3), weight(3, 10))


def lora_on(base: AnyLinear) -> LoraLinear:
    linear = LoraLinear(base, LoraSettings(rank=2, alpha=6.0, targets=("q_proj",)))
    nn.init.normal_(linear.B, generator=torch.Generator().manual_seed(1))
    return linear


KINDS: dict[str, Callable[[], AnyLinear]] = {
    "dense": dense,
    "low rank": low_rank,
    "int8": lambda: Int8Linear.from_dense(weight()),
    "nf4": lambda: Nf4Linear.from_dense(weight()),
    "lora": lambda: lora_on(dense()),
    "lora on low rank": lambda: lora_on(low_rank()),
    "lora on int8": lambda: lora_on(Int8Linear.from_dense(weight())),
    "lora on nf4": lambda: lora_on(Nf4Linear.from_dense(weight())),
    "lora on lora": lambda: lora_on(lora_on(dense())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_pass_multiplies_by_the_dense_weight(kind: str) -> None:
    linear = KINDS[kind]()
    got = linear(torch.eye(10)[None])[0].T  # unit vectors survive int8's rounding of its input
    stated = dense_weight(linear)
    assert stated.dtype == torch.float32
    assert not stated.requires_grad
    assert tuple(stated.shape) == (linear.out_features, linear.in_features) == (6, 10)
    torch.testing.assert_close(got, stated, rtol=1e-5, atol=1e-5 * float(stated.abs().max()))
