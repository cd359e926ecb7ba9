"""int8 rows and NF4 blocks: bounded and known rounding error, exact zeros, exact extremes. math.md 1.16 and 1.17."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from puna.model.quantization import (
    NF4_LEVELS,
    dequantize_maxima,
    dequantize_nf4,
    dequantize_rows_int8,
    quantize_maxima,
    quantize_nf4,
    quantize_rows_int8,
)


@given(st.integers(1, 9), st.integers(1, 70), st.floats(-30, 30), st.integers(0, 999))
def test_every_entry_is_within_half_a_step_and_the_largest_is_met(
    rows: int, width: int, decade: float, seed: int
) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 10.0**decade
    quantized, scale = quantize_rows_int8(x)
    assert quantized.dtype == torch.int8
    assert tuple(scale.shape) == (rows, 1)
    assert quantized.abs().amax(1).eq(127).all()
    error = (dequantize_rows_int8(quantized, scale).double() - x.double()).abs()
    assert (error <= 0.5 * scale.double() * (1 + 1e-4)).all()


def test_gaussian_weights_lose_0_79_percent() -> None:
    weight = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))
    error = dequantize_rows_int8(*quantize_rows_int8(weight)) - weight
    assert float(error.norm() / weight.norm()) == pytest.approx(0.0079, rel=0.02)


def test_zero_rows_stay_zero_beside_others() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]])
    quantized, scale = quantize_rows_int8(x)
    assert quantized.tolist() == [[0, 0, 0], [64, -127, 32]]  # 63.5 rounds to even
    assert dequantize_rows_int8(quantized, scale)[0].tolist() == [0, 0, 0]


def test_numbers_too_small_for_a_scale_become_zero() -> None:
    assert not dequantize_rows_int8(*quantize_rows_int8(torch.full((1, 4), 1e-44))).any()


def test_rounding_what_was_rounded_changes_no_code() -> None:
    first, scale = quantize_rows_int8(torch.randn(64, 256, generator=torch.Generator().manual_seed(1)))
    again, scale_again = quantize_rows_int8(dequantize_rows_int8(first, scale))
    assert torch.equal(again, first)
    torch.testing.assert_close(scale_again, scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_turn_into_numbers(bad: float) -> None:
    x = torch.tensor([[1.0, bad], [1.0, 2.0]])
    restored = dequantize_rows_int8(*quantize_rows_int8(x))
    assert restored[0].isfinite().sum() == 0
    assert restored[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_read_as_float32(dtype: torch.dtype) -> None:
    x = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    before = x.clone()
    quantized, scale = quantize_rows_int8(x)
    assert torch.equal(quantized, quantize_rows_int8(x.float())[0])
    assert tuple(scale.shape) == (4, 5, 1)
    assert scale.dtype == torch.float32
    assert torch.equal(x, before)


PUBLISHED = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def restored(x: torch.Tensor, *, double: bool) -> torch.Tensor:
    codes, maxima = quantize_nf4(x)
    return dequantize_nf4(codes, dequantize_maxima(*quantize_maxima(maxima)) if double else maxima, x.shape)


def loss(x: torch.Tensor, *, double: bool) -> float:
    """RMS error in percent of the RMS."""
    return 100 * float((restored(x, double=double) - x).norm() / x.norm())


def test_the_levels_are_the_published_ones() -> None:
    assert list(NF4_LEVELS) == pytest.approx([float(level) for level in PUBLISHED.split()], abs=1e-6)
    assert NF4_LEVELS[1] == pytest.approx(-0.6961928, abs=1e-7)
    assert (NF4_LEVELS[0], NF4_LEVELS[7], NF4_LEVELS[15]) == (-1, 0, 1)


SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3)


@given(SHAPES, st.floats(-30, 30), st.integers(0, 999))
def test_no_number_is_off_by_more_than_half_the_widest_gap(shape: list[int], decade: float, seed: int) -> None:
    x = gaussian(*shape, seed=seed) * 10.0**decade
    codes, maxima = quantize_nf4(x)
    assert (len(codes), len(maxima)) == (-(-x.numel() // 2), -(-x.numel() // 64))
    largest = maxima.repeat_interleave(64)[: x.numel()].view(shape)
    assert ((restored(x, double=False) - x).abs() <= 0.15191 * largest).all()
    assert float(max(b - a for a, b in pairwise(NF4_LEVELS))) / 2 == pytest.approx(0.15190, abs=1e-5)


@given(SHAPES, st.integers(0, 999))
def test_zeros_and_the_largest_of_a_block_are_exact_and_rounding_twice_is_rounding_once(
    shape: list[int], seed: int
) -> None:
    x = F.dropout(gaussian(*shape, seed=seed), 0.3)
    once, largest = restored(x, double=False), quantize_nf4(x)[1].repeat_interleave(64)[: x.numel()].view(shape)
    assert torch.equal(once[x == 0], x[x == 0])
    assert torch.equal(once[x.abs() == largest], x[x.abs() == largest])
    assert torch.equal(restored(once, double=False), once)
    assert not restored(x, double=True)[x == 0].any()


def test_gaussian_weights_lose_9_20_percent_and_double_quantisation_hardly_more() -> None:
    weight = gaussian(2048, 1024)
    plain = loss(weight, double=False)
    assert plain == pytest.approx(9.20, abs=0.1)
    assert 0 <= loss(weight, double=True) - plain < 0.02


def test_each_of_the_levels_is_met_and_each_number_takes_the_nearest() -> None:
    x = torch.linspace(-1, 1, 64 * 50).view(-1, 50).T.contiguous()  # every block spans the range
    levels = torch.tensor(NF4_LEVELS)
    largest = x.abs().amax(1, keepdim=True)
    nearest = levels[((x / largest)[..., None] - levels).abs().argmin(-1)] * largest
    torch.testing.assert_close(restored(x, double=False), nearest, rtol=0, atol=1e-6)
    assert set(quantize_nf4(levels.repeat(4))[0].tolist()) == {0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF}


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1 << 20, (1 << 20) + 1, (1 << 21) + 77])
def test_any_size_is_worked_on_in_slices_as_if_it_were_whole(size: int) -> None:
    x = gaussian(size)
    whole, tail = restored(x, double=False), -(size % 64) or -64
    assert torch.equal(whole[tail:], restored(x[tail:], double=False))
    assert torch.equal(whole[: 1 << 12], restored(x[: 1 << 12], double=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_and_layouts_are_read_as_float32_and_left_alone(dtype: torch.dtype) -> None:
    x = gaussian(48, 33).to(dtype).T
    before = x.clone()
    codes, maxima = quantize_nf4(x)
    expected, expected_maxima = quantize_nf4(x.float().contiguous())
    assert torch.equal(codes, expected)
    assert torch.equal(maxima, expected_maxima)
    assert torch.equal(x, before)
    wide = dequantize_nf4(codes, maxima, x.shape)
    assert torch.equal(dequantize_nf4(codes, maxima, x.shape, dtype), wide.to(dtype))


def test_maxima_are_met_within_half_a_step_of_their_group_and_never_turn_signs() -> None:
    maxima = gaussian(1000).abs() ** 4
    codes, scales, mean = quantize_maxima(maxima)
    assert (codes.dtype, len(codes), len(scales), mean.shape) == (torch.int8, 1000, 4, ())
    got = dequantize_maxima(codes, scales, mean)
    assert ((got - maxima).abs() <= 0.5001 * scales.repeat_interleave(256)[:1000]).all()
    assert (got >= 0).all()
    assert (got == 0).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_block_that_is_not_finite_does_not_turn_into_numbers(bad: float) -> None:
    x = gaussian(3, 64)
    x[1, 5] = bad
    got = restored(x, double=False)
    assert not got[1].isfinite().any()
    assert got[[0, 2]].isfinite().all()


def test_zeros_stay_zeros_beside_others() -> None:
    x = torch.cat([torch.zeros(64), gaussian(64), torch.full((64,), 1e-44)])
    assert not restored(x, double=True)[:64].any()
    assert torch.equal(restored(x, double=False)[128:], x[128:])
