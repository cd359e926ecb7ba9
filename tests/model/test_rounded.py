"""Linears of few bits: what is stored is what is multiplied, in both directions; factors and corrections of it too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from puna.arch.rounding import ROUNDINGS, Rounding
from puna.errors import UsageError
from puna.model.block_quantization import dequantize_blocks
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.corrected import CorrectedLinear
from puna.model.linears.int8 import Int8Linear, Int8WeightLinear
from puna.model.linears.kind import LinearKind, dense_weight
from puna.model.linears.lora import LoraLinear
from puna.model.linears.rounded import rounded, rounding_of
from puna.model.linears.rounded_low_rank import RoundedLowRankLinear
from puna.weights.kinds import empty_linear, entry_of

D_OUT, D_IN, RANK = 96, 64, 32


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(to: Rounding) -> LinearKind:
    return rounded(drawn(D_OUT, D_IN), to)


def factored(to: Rounding) -> LinearKind:
    return RoundedLowRankLinear(rounded(drawn(RANK, D_OUT, seed=1), to), rounded(drawn(RANK, D_IN, seed=2), to))


def corrected(to: Rounding) -> LinearKind:
    return CorrectedLinear(rounded(drawn(D_OUT, D_IN), to), drawn(D_OUT, 4, seed=1), drawn(4, D_IN, seed=2))


KINDS: tuple[Callable[[Rounding], LinearKind], ...] = (plain, factored, corrected)
each_kind = pytest.mark.parametrize("build", KINDS, ids=lambda build: build.__name__)
each_rounding = pytest.mark.parametrize("to", ROUNDINGS)


@each_kind
@each_rounding
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_dense_weight_both_ways(build, to: Rounding, dtype: torch.dtype) -> None:
    linear, x = build(to), drawn(2, 5, D_IN, seed=7).to(dtype).requires_grad_()
    weight = dense_weight(linear)
    assert weight.shape == (D_OUT, D_IN) == (linear.out_features, linear.in_features)
    assert weight.dtype == torch.float32
    y = linear(x)
    assert (y.shape, y.dtype) == ((2, 5, D_OUT), dtype)
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 0.05, "atol": 2.0}
    torch.testing.assert_close(y.float(), x.float() @ weight.T, **tolerance)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), weight.sum(0).expand(2, 5, -1), **tolerance)


@each_kind
@each_rounding
def test_it_is_stored_as_it_says_and_loaded_without_a_dense_copy(build, to: Rounding) -> None:
    linear = build(to)
    entry = entry_of("layers.0.mlp.up_proj", linear)
    assert entry is not None
    state = linear.state_dict()
    assert {name: tuple(part.shape) for name, part in state.items()} == {
        name: shape for name, (shape, _) in entry.tensors("layers.0.mlp.up_proj", D_OUT, D_IN).items()
    }
    empty = empty_linear(entry, D_OUT, D_IN)
    assert all(part.is_meta for part in empty.state_dict().values())
    empty.load_state_dict(state, assign=True)
    assert torch.equal(dense_weight(empty), dense_weight(linear))
    assert entry_of("layers.0.mlp.up_proj", empty) == entry
    assert not {name for name, part in linear.named_parameters()} - {"L", "R"}


@each_rounding
def test_rounding_what_was_rounded_changes_nothing(to: Rounding) -> None:
    first = rounded(drawn(D_OUT, D_IN), to)
    again = rounded(dense_weight(first), to)
    if to == "nf4":  # the maxima were rounded too
        torch.testing.assert_close(dense_weight(again), dense_weight(first), rtol=0.02, atol=0.02)
    else:
        torch.testing.assert_close(dense_weight(again), dense_weight(first), rtol=1e-3, atol=0)
    assert rounding_of(again) == to


@pytest.mark.parametrize(("to", "error"), [("int8", 0.006), ("q8_0", 0.00534), ("nf4", 0.0920), ("q4_0", 0.0858)])
def test_the_errors_are_the_known_ones(to: Rounding, error: float) -> None:
    weight = drawn(512, 128, seed=3)
    lost = dense_weight(rounded(weight, to)) - weight
    assert float(lost.norm() / weight.norm()) == pytest.approx(error, rel=0.03 if to != "int8" else 0.2)


@pytest.mark.parametrize("to", ["q8_0", "q4_0"])
def test_blocks_are_ggufs_to_the_byte(to: Rounding) -> None:
    linear = rounded(drawn(D_OUT, D_IN), to)
    assert torch.equal(dequantize_blocks(to.upper(), linear.codes), dense_weight(linear))
    with pytest.raises(UsageError, match=f"{to}: expected rows of a multiple of 32 numbers, got 48"):
        rounded(drawn(4, 48), to)


def test_a_component_keeps_its_digits_beside_a_large_one() -> None:
    U_oR, V_Ri = drawn(D_OUT, 2, seed=1), drawn(2, D_IN, seed=2)
    U_oR[:, 1] *= 1e-3
    linear = RoundedLowRankLinear(rounded(U_oR.T.contiguous(), "int8"), rounded(V_Ri, "int8"))
    small = U_oR[:, 1:] @ V_Ri[1:]
    own = linear.U.dense_weight().T[:, 1:] @ linear.V.dense_weight()[1:]
    assert float((own - small).norm() / small.norm()) < 0.02


@each_kind
@each_rounding
def test_a_lora_learns_beside_it(build, to: Rounding) -> None:
    linear = LoraLinear(build(to), LoraSettings(rank=2, alpha=2.0, targets=("q_proj",)))
    x = drawn(3, 5, D_IN)
    torch.testing.assert_close(linear(x), x @ dense_weight(linear).T, rtol=1e-4, atol=1e-3)
    nn.init.normal_(linear.B)
    linear(x).square().sum().backward()
    assert linear.A.grad is not None
    torch.testing.assert_close(linear(x), x @ dense_weight(linear).T, rtol=1e-4, atol=1e-2)


def test_integers_or_not_is_one_weight() -> None:
    weight_only = Int8WeightLinear.from_dense(drawn(D_OUT, D_IN))
    in_integers = Int8Linear(weight_only.weight, weight_only.scale)
    assert torch.equal(dense_weight(in_integers), dense_weight(weight_only))
    assert entry_of("a", in_integers) == entry_of("a", weight_only)
    assert not torch.equal(in_integers(drawn(3, D_IN)), weight_only(drawn(3, D_IN)))
