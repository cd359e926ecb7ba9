"""int8 rows: bounded and known rounding error, exact zeros, exact extremes. math.md 1.17."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.model.quantization import dequantize_rows_int8, quantize_rows_int8


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
