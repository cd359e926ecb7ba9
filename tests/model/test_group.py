"""Linears that share an input give the same numbers and gradients whether they multiply as one or one by one."""

import torch
from torch import Tensor, nn

from puna.model.linears.adapter import LoraOverride, LoraSettings
from puna.model.linears.derived import Derived
from puna.model.linears.group import project_together
from puna.model.linears.lora import LoraLinear
from puna.model.linears.low_rank import LowRankLinear


def three() -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    a, b, c = (nn.Linear(12, width, bias=False).double() for width in (8, 4, 6))
    return a, b, c


def inputs() -> Tensor:
    return torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_together_equals_separately_in_values_and_gradients() -> None:
    linears, x = three(), inputs().requires_grad_()
    leaves = (x, *(linear.weight for linear in linears))
    together, apart = project_together(x, *linears), tuple(linear(x) for linear in linears)
    upstream = [torch.randn_like(y) for y in apart]
    for got, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    gradients = (torch.autograd.grad(outputs, leaves, upstream) for outputs in (together, apart))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_without_autograd_the_values_are_the_same() -> None:
    linears, x = three(), inputs()
    with torch.no_grad():
        for got, linear in zip(project_together(x, *linears), linears, strict=True):
            torch.testing.assert_close(got, linear(x), rtol=0, atol=0)


def test_one_member_of_another_kind_keeps_its_own_forward_pass() -> None:
    a, _, c = three()
    thin = LowRankLinear(torch.randn(4, 2, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64))
    x = inputs()
    for got, linear in zip(project_together(x, a, thin, c), (a, thin, c), strict=True):
        torch.testing.assert_close(got, linear(x), rtol=1e-10, atol=1e-12)


def adapters(x_width: int = 12) -> list[LoraLinear]:
    settings = LoraSettings(rank=3, alpha=5.0, targets=(), overrides=(LoraOverride(target="b", rank=2),))
    found = []
    for path, linear in zip("abc", three(), strict=True):
        lora = LoraLinear(linear, settings, torch.Generator().manual_seed(2), path).double()
        nn.init.normal_(lora.B, generator=torch.Generator().manual_seed(3))
        found.append(lora)
    assert found[0].in_features == x_width
    return found


def test_adapters_together_equal_their_formula_in_values_and_gradients() -> None:
    loras, x = adapters(), inputs().requires_grad_()
    leaves = (x, *(lora.A for lora in loras), *(lora.B for lora in loras))
    together = project_together(x, *loras)
    apart = [lora.base(x) + lora.scale * (x @ lora.A.T) @ lora.B.T for lora in loras]
    alone = [lora(x) for lora in loras]
    upstream = [torch.randn_like(y) for y in apart]
    gradients = [torch.autograd.grad(outputs, leaves, upstream) for outputs in (together, alone, apart)]
    for outputs, found in zip((together, alone), gradients, strict=False):
        for got, expected in zip((*outputs, *found), (*apart, *gradients[2]), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        for got, expected in zip(project_together(x, *loras), apart, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert all(lora.base.weight.grad is None for lora in loras)


def test_an_input_that_needs_no_gradient_gets_none_and_the_factors_do() -> None:
    loras = adapters()
    sum(y.sum() for y in project_together(inputs(), *loras)).backward()
    assert all(factor.grad is not None for lora in loras for factor in (lora.A, lora.B))


def test_what_an_input_is_formed_of_is_kept_in_its_place_and_gives_the_same_gradients() -> None:
    for linears in (three(), adapters()):
        x, trained = (
            inputs().requires_grad_(),
            [w for linear in linears for w in linear.parameters() if w.requires_grad],
        )
        found, kept = [], []
        for source in (x.sin(), Derived(x.sin(), (x,), torch.sin)):
            places = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, p=places: p.append(t.data_ptr()) or t, lambda t: t):
                outputs = project_together(source, *linears)
            found.append(torch.autograd.grad(sum(y.square().sum() for y in outputs), [x, *trained]))
            kept.append(
                source.data_ptr() in places if isinstance(source, Tensor) else source.value.data_ptr() in places
            )
        assert kept == [True, False]
        for got, expected in zip(*found, strict=True):
            assert torch.equal(got, expected)
