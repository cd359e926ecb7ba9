"""LoRA: a fresh adapter is the base exactly; only A and B learn; merged = attached. math.md 1.15."""

import pytest
import torch
from torch import Tensor, nn

from puna.model.linears.kind import AnyLinear, dense_weight
from puna.model.linears.lora import LoraLinear, LoraSettings
from puna.model.linears.low_rank import LowRankLinear


def base() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(24, 16, bias=False)


def inputs() -> Tensor:
    return torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))


def attach(linear: AnyLinear, rank: int = 4, alpha: float = 8.0, *, trained: bool) -> LoraLinear:
    generator = torch.Generator().manual_seed(2)
    lora = LoraLinear(linear, LoraSettings(rank=rank, alpha=alpha, targets=("q_proj",)), generator)
    if trained:
        nn.init.normal_(lora.B, generator=generator)
    return lora


@pytest.mark.parametrize("kind", ["dense", "low rank"])
def test_a_fresh_adapter_is_the_base_exactly(kind: str) -> None:
    torch.manual_seed(3)
    linear = base() if kind == "dense" else LowRankLinear(torch.randn(16, 5), torch.randn(5, 24))
    before = linear(inputs())
    assert torch.equal(attach(linear, trained=False)(inputs()), before)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (4, 8.0), (8, 4.0), (16, 3.0)])
def test_the_update_is_alpha_over_rank_times_b_a(rank: int, alpha: float) -> None:
    lora = attach(base(), rank, alpha, trained=True)
    expected = base()(inputs()) + (alpha / rank) * ((inputs() @ lora.A.T) @ lora.B.T)
    torch.testing.assert_close(lora(inputs()), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lora.update(), alpha / rank * lora.B.detach() @ lora.A.detach(), rtol=1e-5, atol=1e-5)


def test_the_merged_weight_computes_what_the_attached_adapter_computes() -> None:
    lora = attach(base(), trained=True)
    attached = lora(inputs()).detach()
    merged = inputs() @ dense_weight(lora).T
    assert float((merged - attached).abs().max() / attached.abs().max()) < 1e-5


def test_only_the_adapters_tensors_learn_and_their_gradients_are_the_closed_form() -> None:
    lora, x = attach(base(), trained=True), inputs().requires_grad_()
    upstream = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(4))
    lora(x).backward(upstream)
    assert {name for name, weight in lora.named_parameters() if weight.requires_grad} == {"A", "B"}
    assert isinstance(lora.base, nn.Linear)
    assert lora.base.weight.grad is None
    x_Ni, dy_No = x.detach().flatten(0, 1), upstream.flatten(0, 1)
    scale = 8.0 / 4
    torch.testing.assert_close(lora.B.grad, scale * dy_No.T @ (x_Ni @ lora.A.detach().T), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lora.A.grad, scale * lora.B.detach().T @ dy_No.T @ x_Ni, rtol=1e-4, atol=1e-4)


def test_at_the_start_only_b_receives_a_gradient() -> None:
    lora = attach(base(), trained=False)
    lora(inputs()).sum().backward()
    assert lora.A.grad is not None
    assert not lora.A.grad.any()
    assert lora.B.grad is not None
    assert lora.B.grad.any()


def test_a_starts_uniform_within_one_over_root_d_in_from_its_own_generator() -> None:
    torch.manual_seed(5)
    wide = LoraLinear(
        nn.Linear(400, 8, bias=False), LoraSettings(rank=64, alpha=1.0, targets=()), torch.Generator().manual_seed(6)
    )
    bound = 400**-0.5
    assert 0.99 * bound < float(wide.A.detach().abs().max()) <= bound
    assert float(wide.A.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    torch.manual_seed(7)
    again = LoraLinear(
        nn.Linear(400, 8, bias=False), LoraSettings(rank=64, alpha=1.0, targets=()), torch.Generator().manual_seed(6)
    )
    assert torch.equal(wide.A, again.A)


def test_an_adapter_holds_rank_times_the_sum_of_the_widths() -> None:
    lora = attach(base(), rank=5, trained=False)
    assert sum(weight.numel() for weight in lora.parameters() if weight.requires_grad) == 5 * (24 + 16)


def test_a_half_precision_base_with_float32_factors_answers_in_half_precision() -> None:
    lora = attach(base().bfloat16(), trained=True)
    got = lora(inputs().bfloat16())
    assert got.dtype == torch.bfloat16
    assert lora.A.dtype == torch.float32
    expected = inputs() @ dense_weight(lora).T
    assert float((got.detach().float() - expected).abs().max() / expected.abs().max()) < 0.03
