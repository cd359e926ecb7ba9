"""Each norm against its formula and its closed way back, and RMSNorm's relation to LayerNorm. math.md 1.7."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from puna.model.norms import BatchNorm, LayerNorm, NoNorm, RMSNorm


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


def test_layer_norm_is_its_formula_and_its_way_back_the_closed_form(x: Tensor) -> None:
    module = lively(LayerNorm(16, 1e-5))
    mean, spread = x.mean(-1, keepdim=True), (x.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
    hat = (x - mean) * spread
    torch.testing.assert_close(module(x), module.weight * hat + module.bias, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(x)
    (got,) = torch.autograd.grad(module.derived(x.requires_grad_()).value, x, upstream)
    u = module.weight * upstream
    expected = spread * (u - u.mean(-1, keepdim=True) - hat * (u * hat).mean(-1, keepdim=True))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_layer_norm_is_formed_again_to_the_bit(x: Tensor) -> None:
    made = lively(LayerNorm(16, 1e-5)).derived(x)
    assert torch.equal(made.form(*made.sources), made.value)


def test_batch_norm_measures_each_feature_over_all_tokens(x: Tensor) -> None:
    module = lively(BatchNorm(16, 1e-5)).train()
    rows = x.flatten(0, 1)
    hat = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(module(x).flatten(0, 1), module.weight * hat + module.bias, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(module.running_mean, 0.1 * rows.mean(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(module.running_var, 0.9 + 0.1 * rows.var(0, correction=1), rtol=1e-9, atol=0)
    module.eval()
    hat = (rows - module.running_mean) / (module.running_var + 1e-5).sqrt()
    torch.testing.assert_close(module(x).flatten(0, 1), module.weight * hat + module.bias, rtol=1e-9, atol=1e-12)


def test_batch_norm_leaks_the_future_in_training_and_not_in_evaluation(x: Tensor) -> None:
    module, later = lively(BatchNorm(16, 1e-5)), x.clone()
    later[:, 3] += 1.0
    assert (module.train()(x)[:, 2] - module(later)[:, 2]).abs().max() > 1e-3
    assert torch.equal(module.eval()(x)[:, 2], module(later)[:, 2])


def test_no_norm_is_the_stream(x: Tensor) -> None:
    assert NoNorm(16, 1e-5)(x) is x


def lively(module: LayerNorm | BatchNorm) -> LayerNorm | BatchNorm:
    module = module.double()
    with torch.no_grad():
        module.weight.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(1))
        module.bias.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(2))
    return module
