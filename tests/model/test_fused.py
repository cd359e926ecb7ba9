"""Low-rank Linears that share a factor: the numbers of separate ones, one V, one product with it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from puna.model.linears.adapter import LoraSettings, Start
from puna.model.linears.fused import fused_linears, fused_paths
from puna.model.linears.group import project_together
from puna.model.linears.kind import AnyLinear
from puna.model.linears.lora import LoraLinear
from puna.model.linears.low_rank import LowRankLinear

WIDTHS, D_IN, RANK = (8, 4, 6), 12, 3


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def group() -> tuple[LowRankLinear, ...]:
    return fused_linears([gaussian(width, RANK, seed=width) for width in WIDTHS], gaussian(RANK, D_IN, seed=0))


def inputs() -> Tensor:
    return gaussian(2, 5, D_IN, seed=1)


@pytest.mark.parametrize("grad", [True, False])
def test_together_alone_and_separate_factors_are_the_same_product(grad: bool) -> None:
    linears, x = group(), inputs()
    with torch.set_grad_enabled(grad):
        for together, linear in zip(project_together(x, *linears), linears, strict=True):
            expected = x @ (linear.U @ linear.V).T
            torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(linear(x), expected, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_the_shared_factor_is_the_sum_over_its_linears() -> None:
    linears, x = group(), inputs().requires_grad_()
    separate = [LowRankLinear(linear.U.detach().clone(), linear.V.detach().clone()) for linear in linears]
    upstream = [gaussian(2, 5, width, seed=width + 1) for width in WIDTHS]
    dx, dV, *dUs = torch.autograd.grad(
        project_together(x, *linears), (x, linears[0].V, *(linear.U for linear in linears)), upstream
    )
    alone = [
        torch.autograd.grad(linear(x), (x, linear.V, linear.U), dy)
        for linear, dy in zip(separate, upstream, strict=True)
    ]
    torch.testing.assert_close(dx, sum(parts[0] for parts in alone), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dV, sum(parts[1] for parts in alone), rtol=1e-10, atol=1e-12)
    for dU, parts in zip(dUs, alone, strict=True):
        torch.testing.assert_close(dU, parts[2], rtol=1e-10, atol=1e-12)


def product_flops(*linears: AnyLinear) -> int:
    with FlopCounterMode(display=False) as counter:
        project_together(inputs(), *linears)
    return counter.get_total_flops()


@pytest.mark.parametrize("grad", [True, False])
def test_the_shared_factor_multiplies_once(grad: bool) -> None:
    tokens, linears = 10, group()
    dense = nn.Linear(D_IN, WIDTHS[1], bias=False).double()
    with torch.set_grad_enabled(grad):
        assert product_flops(*linears) == 2 * tokens * RANK * (D_IN + sum(WIDTHS))
        two = 2 * tokens * (RANK * (D_IN + WIDTHS[0] + WIDTHS[2]) + D_IN * WIDTHS[1])
        assert product_flops(linears[0], dense, linears[2]) == two


@pytest.mark.parametrize("start", ["zeros", "pissa"])
@pytest.mark.parametrize("grad", [True, False])
def test_beneath_adapters_it_multiplies_once_and_each_computes_what_it_does_alone(grad: bool, start: Start) -> None:
    settings, x = LoraSettings(rank=2, alpha=6.0, targets=(), start=start), inputs().requires_grad_()
    loras = [LoraLinear(linear, settings).double() for linear in group()]
    assert len({id(lora.base.V) for lora in loras}) == 1
    for lora in loras:
        nn.init.normal_(lora.B, generator=torch.Generator().manual_seed(3))
    with torch.set_grad_enabled(grad):
        with FlopCounterMode(display=False) as together:
            outputs = project_together(x, *loras)
        with FlopCounterMode(display=False) as alone:
            expected = [lora(x) for lora in loras]
        assert alone.get_total_flops() - together.get_total_flops() == 2 * 2 * 10 * RANK * D_IN
    leaves = (x, *(factor for lora in loras for factor in (lora.A, lora.B)))
    upstream = [torch.ones_like(y) for y in expected]
    found = [torch.autograd.grad(ys, leaves, upstream) if grad else () for ys in (outputs, expected)]
    for got, wanted in zip((*outputs, *found[0]), (*expected, *found[1]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_it_is_one_parameter_that_stays_shared() -> None:
    module = nn.ModuleList(group())
    numbers = RANK * (D_IN + sum(WIDTHS))
    for kept in (module, copy.deepcopy(module), copy.deepcopy(module).to(torch.bfloat16)):
        assert sum(weight.numel() for weight in kept.parameters()) == numbers
        assert {id(linear.V) for linear in kept} == {id(kept[0].V)}


def test_groups_are_found_by_what_they_share() -> None:
    q, k, v = group()
    gate, up, _ = group()
    alone = LowRankLinear(q.U.detach(), q.V.detach())
    named: list[tuple[str, AnyLinear]] = [("q", q), ("k", k), ("v", v), ("o", alone), ("gate", gate), ("up", up)]
    assert list(fused_paths(named)) == [("q", "k", "v"), ("gate", "up")]
    assert list(fused_paths([("q", q), ("o", alone), ("down", nn.Linear(2, 2))])) == []
