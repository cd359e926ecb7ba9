"""RMSNorm against its formula, its closed backward pass, and its relation to LayerNorm. math.md 1.7."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from puna.model.norms import RMSNorm


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def norm(eps: float = 1e-5) -> RMSNorm:
    module = RMSNorm(16, eps).double()
    with torch.no_grad():
        module.weight.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(1))
    return module


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.25])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_output_is_x_over_the_root_of_its_mean_square_plus_eps(x: Tensor, eps: float, size: float) -> None:
    module, x = norm(eps), x * size
    expected = module.weight * x / ((x * x).sum(-1, keepdim=True) / 16 + eps) ** 0.5
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=0)


def test_the_gradients_pass_a_central_difference_check(x: Tensor) -> None:
    module = norm()
    inputs = (x[0].requires_grad_(), module.weight)
    assert torch.autograd.gradcheck(lambda x, _: module(x), inputs, eps=1e-6, rtol=1e-6, atol=1e-8)


def test_the_backward_pass_is_the_closed_form(x: Tensor) -> None:
    module, upstream = norm(), torch.randn_like(x)
    (got,) = torch.autograd.grad(module(x.requires_grad_()), x, upstream)
    rho = (x.square().mean(-1, keepdim=True) + module.eps).rsqrt()
    u = module.weight * upstream
    expected = rho * u - x * rho**3 * (x * u).mean(-1, keepdim=True)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_the_scale_of_the_input_does_not_matter_up_to_eps(x: Tensor) -> None:
    module = norm()
    torch.testing.assert_close(module(37.0 * x), module(x), rtol=1e-4, atol=0)
    torch.testing.assert_close(norm(eps=1e-12)(37.0 * x), norm(eps=1e-12)(x), rtol=1e-9, atol=0)


def test_on_inputs_of_mean_zero_it_is_layer_norm_without_bias(x: Tensor) -> None:
    module = norm()
    centred = x - x.mean(-1, keepdim=True)
    expected = F.layer_norm(centred, (16,), weight=module.weight, eps=module.eps)
    torch.testing.assert_close(module(centred), expected, rtol=1e-10, atol=1e-12)


def test_half_precision_is_normalised_in_float32_and_cast_before_the_gain(x: Tensor) -> None:
    module = norm().bfloat16()
    half = (300 * x).bfloat16()
    wide = half.float()
    normalised = wide / (wide.square().mean(-1, keepdim=True) + module.eps).sqrt()
    got = module(half)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, module.weight * normalised.bfloat16(), rtol=0, atol=0)
