"""Int8Linear: products exact in integers, errors as math.md 1.17 states them, a gradient that reaches the input."""

import pytest
import torch
from torch import Tensor

from puna.model.linears.int8 import Int8Linear
from puna.model.quantization import quantize_rows_int8


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(linear: Int8Linear, x: Tensor, weight: Tensor) -> float:
    expected = x @ weight.T
    return float((linear(x) - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [(1, 17, 5), (1, 1, 1), (3, 17, 5), (16, 64, 9), (33, 2048, 24), (7, 704, 256)])
def test_products_of_codes_are_exact(shape: tuple[int, int, int]) -> None:
    tokens, d_in, d_out = shape
    x, linear = gaussian(tokens, d_in), Int8Linear.from_dense(gaussian(d_out, d_in, seed=1))
    x_codes, x_scale = quantize_rows_int8(x)
    exact = x_codes.long() @ linear.weight.long().T
    expected = (exact.double() * x_scale * linear.scale.T).float()
    torch.testing.assert_close(linear(x), expected, rtol=1e-6, atol=0)


def test_the_longest_sum_that_fits_int32_does_not_overflow() -> None:
    d_in = 133_144
    linear = Int8Linear.from_dense(torch.stack((torch.ones(d_in), -torch.ones(d_in))))
    assert 127 * 127 * d_in < 2**31 <= 127 * 127 * (d_in + 1)
    torch.testing.assert_close(linear(torch.ones(1, d_in))[0], torch.tensor([d_in, -d_in]).float(), rtol=1e-6, atol=0)


def test_a_gaussian_product_is_off_by_1_10_percent() -> None:
    weight = gaussian(1024, 1024, seed=1)
    assert relative_error(Int8Linear.from_dense(weight), gaussian(2048, 1024), weight) == pytest.approx(
        0.0110, rel=0.02
    )


def test_a_channel_60_times_as_loud_costs_13_percent_of_the_rest() -> None:
    weight, x = gaussian(1024, 1024, seed=1), gaussian(1024, 1024)
    linear, rest = Int8Linear.from_dense(weight), x.clone()
    x[:, 7], rest[:, 7] = 60.0, 0.0
    error = (linear(x) - x @ weight.T).norm() / (rest @ weight.T).norm()
    assert float(error) == pytest.approx(0.13, abs=0.01)


def test_zero_rows_and_zero_tokens_give_zero() -> None:
    weight, x = gaussian(6, 10, seed=1), gaussian(4, 10)
    weight[2], x[3] = 0, 0
    y = Int8Linear.from_dense(weight)(x)
    assert not y[:, 2].any()
    assert not y[3].any()
    assert y[:3, :2].all()


def test_a_token_is_rounded_by_itself_whatever_stands_beside_it() -> None:
    linear, x = Int8Linear.from_dense(gaussian(24, 40, seed=1)), gaussian(3, 5, 40)
    together = linear(x)
    assert together.shape == (3, 5, 24)
    assert torch.equal(together[1, 2], linear(x[1, 2]))
    assert linear(x[:, :0]).shape == (3, 0, 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_answer_has_the_inputs_type(dtype: torch.dtype) -> None:
    linear, x = Int8Linear.from_dense(gaussian(24, 40, seed=1)), gaussian(5, 40).to(dtype)
    assert linear(x).dtype == dtype
    assert torch.equal(linear(x), linear(x.float()).to(dtype))


def test_the_gradient_passes_straight_through_the_rounding_of_the_input() -> None:
    linear, x = Int8Linear.from_dense(gaussian(24, 40, seed=1)), gaussian(2, 5, 40).requires_grad_()
    upstream = gaussian(2, 5, 24, seed=2)
    linear(x).backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ linear.dense_weight(), rtol=1e-5, atol=1e-5)
    assert not list(linear.parameters())


def test_it_stores_one_byte_for_each_weight_and_one_scale_for_each_row() -> None:
    state = Int8Linear.from_dense(gaussian(24, 40)).state_dict()
    assert {name: (tuple(value.shape), value.dtype) for name, value in state.items()} == {
        "weight": ((24, 40), torch.int8),
        "scale": ((24, 1), torch.float32),
    }
