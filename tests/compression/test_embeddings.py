"""Factored tables: the laws of weighted PCA, what no softmax sees, and the input's and the head's own metrics."""

import copy

import pytest
import torch
from torch import Tensor

from puna.compression.embeddings import (
    collect_table_statistics,
    factor_table,
    factor_tables,
    token_weights,
)
from puna.errors import BadData, UsageError
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama

V, D = 40, 12
IDS = torch.randint(512, (2, 40), generator=torch.Generator().manual_seed(3))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights() -> Tensor:
    return token_weights(torch.arange(V).square().double())


def metric() -> Tensor:
    root = drawn(D, D, seed=5) * torch.logspace(0, -1, D, dtype=torch.float64)
    return root @ root.T


def loss(table: Tensor, p_V: Tensor, M: Tensor, found) -> float:
    """sum_v p_v |(e_v - mean - z_v R) M^1/2|^2."""
    lost = table - found.mean_D - found.Z_VK @ found.R_KD
    return float((p_V * ((lost @ M) * lost).sum(1)).sum())


@pytest.mark.parametrize("rank", [1, 5, D])
def test_the_weighted_error_is_the_dropped_eigenvalues_and_no_other_directions_lose_less(rank: int) -> None:
    table, p_V = drawn(V, D), weights()
    M = metric() + 1e-6 * metric().diagonal().mean() * torch.eye(D, dtype=torch.float64)
    found = factor_table(table, rank, p_V, metric())
    assert loss(table, p_V, M, found) == pytest.approx(found.loss(rank), rel=1e-9, abs=1e-12)
    for seed in range(3):
        other = copy.copy(found)
        object.__setattr__(other, "R_KD", found.R_KD + 1e-3 * drawn(rank, D, seed=seed))
        assert loss(table, p_V, M, other) > found.loss(rank) or rank == D
    assert factor_table(table, rank).loss(rank) <= loss(
        table, torch.full((V,), 1 / V).double(), torch.eye(D).double(), found
    ) * (1 + 1e-9)


def test_all_directions_are_the_table_and_even_weights_are_plain_pca() -> None:
    table = drawn(V, D)
    found = factor_table(table, D, weights(), metric())
    torch.testing.assert_close(found.mean_D + found.Z_VK @ found.R_KD, table)
    plain, even = (
        factor_table(table, 4),
        factor_table(table, 4, torch.full((V,), 1 / V).double(), torch.eye(D).double()),
    )
    torch.testing.assert_close(plain.Z_VK @ plain.R_KD, even.Z_VK @ even.R_KD, rtol=1e-5, atol=1e-5)
    centred = table - table.mean(0)
    U, s, Vh = torch.linalg.svd(centred)
    torch.testing.assert_close(plain.Z_VK @ plain.R_KD, (U[:, :4] * s[:4]) @ Vh[:4])
    torch.testing.assert_close(plain.energy_D, s.square() / V)


def test_a_tied_pair_is_one_decomposition_of_both_metrics() -> None:
    """min of the sum of both losses = the metric form with M = H + C: no other pair Z, R of both loses less."""
    table, p_V, first, second = drawn(V, D), weights(), metric(), metric().flip(0, 1)
    joint = factor_table(table, 4, p_V, first + second)
    summed = loss(table, p_V, first, joint) + loss(table, p_V, second, joint)
    assert summed == pytest.approx(joint.loss(4), rel=1e-5)
    for M in (first, second):
        alone = factor_table(table, 4, p_V, M)
        assert loss(table, p_V, first, alone) + loss(table, p_V, second, alone) > summed


def test_the_head_needs_no_mean(build_llama) -> None:
    model = build_llama(tied_embeddings=False).double()
    before = model(IDS).log_softmax(-1)
    table = model.lm_head.weight.detach()
    hidden = model.hidden(IDS).detach()
    found = factor_table(table, 64)
    torch.testing.assert_close(
        (hidden @ (found.Z_VK @ found.R_KD).T).log_softmax(-1), before.detach(), rtol=1e-6, atol=1e-6
    )


def test_what_never_occurs_counts_a_tenth_of_an_even_share() -> None:
    p_V = token_weights(torch.tensor([0.0, 90.0, 10.0]))
    assert float(p_V.sum()) == pytest.approx(1)
    assert float(p_V[0] / p_V[2]) == pytest.approx((0.1 / 3) / 0.1)
    with pytest.raises(BadData, match="at least one token"):
        token_weights(torch.zeros(3))


@pytest.mark.parametrize("tied", [True, False])
def test_the_statistics_are_those_of_the_tables(build_llama, tied: bool) -> None:
    model = build_llama(tied_embeddings=tied).double()
    found = collect_table_statistics(model, [IDS[:1], IDS[1:]])
    assert found.tokens == IDS.numel()
    assert torch.equal(found.counts_V, torch.bincount(IDS.flatten(), minlength=512).double())
    hidden = model.hidden(IDS).detach().flatten(0, 1)
    torch.testing.assert_close(found.hidden_DD, hidden.T @ hidden / len(hidden))
    again = collect_table_statistics(model, [IDS[:1], IDS[1:]])
    assert torch.equal(again.input_DD, found.input_DD)
    assert float(found.input_DD.diagonal().min()) > 0
    assert all(weight.requires_grad for weight in model.parameters())
    assert not model.embed_tokens._forward_hooks
    with pytest.raises(BadData, match="at least one window"):
        collect_table_statistics(model, [])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tables", ["both", "input", "head"])
@torch.no_grad()
def test_a_model_of_smaller_tables(build_llama, tied: bool, tables) -> None:
    model = build_llama(tied_embeddings=tied)
    if tied and tables != "both":
        with pytest.raises(UsageError, match="expected both"):
            factor_tables(model, 20, collect_table_statistics(model, [IDS]), tables=tables)
        return
    dense, statistics = copy.deepcopy(model), collect_table_statistics(model, [IDS])
    made = factor_tables(model, 20, statistics, tables=tables)
    assert isinstance(model.embed_tokens, FactoredEmbedding) == (tables != "head")
    assert isinstance(model.lm_head, LowRankLinear) == (tables != "input")
    if tied:
        assert model.lm_head.U is model.embed_tokens.Z
        assert model.lm_head.V is model.embed_tokens.R
        assert set(made) == {"embed_tokens"}
        both_DD = statistics.input_DD + statistics.hidden_DD
        expected = factor_table(dense.embed_tokens.weight, 20, token_weights(statistics.counts_V), both_DD)
        assert torch.equal(made["embed_tokens"].energy_D, expected.energy_D)
    if tables != "head":
        rows = model.embed_tokens(IDS)
        torch.testing.assert_close(rows, model.embed_tokens.dense_weight()[IDS])
        assert float((rows - dense.embed_tokens(IDS)).norm() / dense.embed_tokens(IDS).norm()) < 1
    assert torch.isfinite(model(IDS)).all()
    with pytest.raises(UsageError, match="factored already"):
        factor_tables(model, 20, None, "plain", tables)


@pytest.mark.parametrize("rank", [0, 57, 64])
def test_a_rank_that_saves_nothing_is_refused(tiny: Llama, rank: int) -> None:
    with pytest.raises(UsageError, match="embedding rank: expected 1 to 56"):
        factor_tables(tiny, rank, None, "plain")
    with pytest.raises(UsageError, match="unknown metric"):
        factor_tables(tiny, 8, None, "best")  # type: ignore[arg-type]
    assert isinstance(tiny.embed_tokens, torch.nn.Embedding)


def test_more_directions_lose_less_and_the_metrics_are_what_they_weigh(build_llama) -> None:
    model = build_llama(tied_embeddings=False)
    statistics = collect_table_statistics(model, [IDS])
    table = model.lm_head.weight.detach()
    p_V, C = token_weights(statistics.counts_V), statistics.hidden_DD
    losses = [factor_table(table, rank, p_V, C).loss(rank) for rank in (4, 8, 16, 32)]
    assert losses == sorted(losses, reverse=True)
    plain = factor_table(table, 16)
    assert loss(table.double(), p_V, C, plain) > losses[2]
