"""LoRA: a fresh adapter is the base exactly; only A and B learn; merged = attached. math.md 1.15."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from puna.errors import UsageError
from puna.model.linears.adapter import LoraOverride, LoraSettings, Start
from puna.model.linears.kind import AnyLinear, dense_weight
from puna.model.linears.lora import DoraLinear, LoraEmbedding, LoraLinear, lora_linear
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
    update = dense_weight(lora) - base().weight.detach()
    torch.testing.assert_close(update, alpha / rank * lora.B.detach() @ lora.A.detach(), rtol=1e-5, atol=1e-5)


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


def dora(*, trained: bool) -> DoraLinear:
    settings = LoraSettings(rank=4, alpha=8.0, targets=("q_proj",), magnitudes=True)
    lora = lora_linear(base(), settings, torch.Generator().manual_seed(2))
    assert isinstance(lora, DoraLinear)
    if trained:
        nn.init.normal_(lora.B, generator=torch.Generator().manual_seed(3))
        nn.init.uniform_(lora.magnitude, 0.5, 2.0, generator=torch.Generator().manual_seed(4))
    return lora


def test_a_fresh_dora_is_the_base_exactly() -> None:
    assert torch.equal(dora(trained=False)(inputs()), base()(inputs()))


def test_a_doras_rows_are_as_long_as_its_magnitudes_and_merged_is_attached() -> None:
    lora = dora(trained=True)
    merged = dense_weight(lora)
    torch.testing.assert_close(merged.norm(dim=1), lora.magnitude.detach(), rtol=1e-6, atol=0)
    plain = base().weight.detach() + 2 * lora.B.detach() @ lora.A.detach()
    torch.testing.assert_close(merged / merged.norm(dim=1)[:, None], plain / plain.norm(dim=1)[:, None])
    attached = lora(inputs()).detach()
    assert float((inputs() @ merged.T - attached).abs().max() / attached.abs().max()) < 1e-5


def test_a_doras_gradients_take_the_rows_lengths_as_constants() -> None:
    lora, x = dora(trained=True), inputs()
    upstream = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(5))
    lora(x).backward(upstream)
    A, B, m = (weight.detach().clone().requires_grad_() for weight in (lora.A, lora.B, lora.magnitude))
    whole = base().weight.detach() + 2 * B @ A
    (x @ (m[:, None] * whole / whole.norm(dim=1, keepdim=True).detach()).T).backward(upstream)
    for ours, explicit in ((lora.A, A), (lora.B, B), (lora.magnitude, m)):
        torch.testing.assert_close(ours.grad, explicit.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("stabilised", [False, True])
def test_factors_that_begin_as_a_part_of_the_base_change_nothing_at_first(start: Start, stabilised: bool) -> None:
    settings = LoraSettings(rank=4, alpha=8.0, targets=(), start=start, rank_stabilized=stabilised)
    lora = lora_linear(base(), settings)
    assert torch.equal(lora(inputs()), base()(inputs()))
    assert torch.equal(dense_weight(lora), base().weight.detach())
    residual = base().weight.detach() - settings.scale_of("") * lora.B.detach() @ lora.A.detach()
    if start == "pissa":
        assert float(residual.norm()) == pytest.approx(
            float(torch.linalg.svdvals(base().weight.detach())[4:].norm()), rel=1e-5
        )
        torch.testing.assert_close((lora.B.T @ lora.B).detach(), (lora.A @ lora.A.T).detach(), rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close((lora.B.T @ lora.B).detach(), torch.eye(4), rtol=0, atol=1e-5)
    lora(inputs()).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in (lora.A, lora.B))
    nn.init.normal_(lora.B, generator=torch.Generator().manual_seed(6))
    attached = lora(inputs()).detach()
    assert float((inputs() @ dense_weight(lora).T - attached).abs().max() / attached.abs().max()) < 1e-5


def test_a_stabilised_rank_divides_alpha_by_its_root() -> None:
    settings = LoraSettings(rank=16, alpha=8.0, targets=(), rank_stabilized=True)
    assert (settings.scale_of("a"), replace(settings, rank_stabilized=False).scale_of("a")) == (2.0, 0.5)


def test_the_first_override_that_names_a_module_counts() -> None:
    overrides = (
        LoraOverride(target="layers.3.mlp.up_proj", rank=2),
        LoraOverride(target="up_proj", rank=3, alpha=9.0),
        LoraOverride(target="mlp.down_proj", alpha=1.0),
    )
    settings = LoraSettings(rank=8, alpha=4.0, targets=("up_proj", "down_proj"), overrides=overrides)
    paths = ("layers.3.mlp.up_proj", "layers.13.mlp.up_proj", "layers.0.mlp.down_proj", "layers.0.self_attn.q_proj")
    assert [settings.rank_of(path) for path in paths] == [2, 3, 8, 8]
    assert [settings.scale_of(path) for path in paths] == [4.5, 3.0, 0.125, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, r"lora\.rank"),
        ({"alpha": 0.0}, r"lora\.alpha"),
        ({"start": "svd"}, r"lora\.start"),
        ({"start": "pissa", "magnitudes": True}, r"lora\.start: expected zeros"),
        ({"start": "pissa", "targets": ("embed_tokens",)}, r"lora\.targets: expected Linears for pissa"),
        ({"magnitudes": True, "targets": ("embed_tokens",)}, r"lora\.targets: expected Linears for magnitudes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LoraSettings(**{"rank": 2, "alpha": 4.0, "targets": ("q_proj",)} | changes)


def test_an_override_says_something() -> None:
    with pytest.raises(UsageError, match="neither"):
        LoraOverride(target="q_proj")
    with pytest.raises(UsageError, match=r"q_proj\.rank"):
        LoraOverride(target="q_proj", rank=0)


def test_an_embeddings_update_is_a_gather_of_its_dense_form() -> None:
    torch.manual_seed(0)
    table, ids = nn.Embedding(20, 6), torch.tensor([[3, 1, 3], [0, 19, 7]])
    lora = LoraEmbedding(table, LoraSettings(rank=2, alpha=6.0, targets=("embed_tokens",)))
    assert torch.equal(lora(ids), table(ids))
    nn.init.normal_(lora.A)
    torch.testing.assert_close(lora(ids), lora.dense_weight()[ids])
    lora(ids).sum().backward()
    assert lora.A.grad is not None
    assert lora.A.grad.any(0).nonzero().flatten().tolist() == [0, 1, 3, 7, 19]
    assert table.weight.grad is None
