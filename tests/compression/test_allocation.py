"""Ranks under a budget: as large as the budget allows, never over it, and dense where factors would not save."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.arch.config import ModelConfig
from puna.arch.presets import find_preset
from puna.compression.allocation import uniform_rank, uniform_ranks
from puna.compression.sizes import linear_bytes
from puna.errors import UsageError
from puna.model.llama import Llama

SIZES = st.integers(1, 20_000)


@given(SIZES, SIZES, st.floats(0.01, 0.999))
def test_a_rank_is_the_largest_that_the_budget_allows_and_always_saves(d_out: int, d_in: int, keep: float) -> None:
    rank, budget = uniform_rank((d_out, d_in), keep), keep * d_out * d_in
    if rank is None:
        assert d_out + d_in >= min(budget, d_out * d_in)  # even rank 1 saves nothing
    else:
        assert rank * (d_out + d_in) < d_out * d_in
        assert rank == 1 or rank * (d_out + d_in) <= budget * (1 + 1e-12)
        assert (rank + 1) * (d_out + d_in) > budget * (1 - 1e-12)


def test_ranks_of_llama_3_8b_at_80_percent_are_those_of_the_reference_table() -> None:
    ranks = uniform_ranks(find_preset("llama-3-8b").config, 0.8)
    assert len(ranks) == 7 * 32
    shares = {"q_proj": (4096, 0.400), "k_proj": (1024, 0.640), "down_proj": (4096, 0.622)}
    for name, (smaller, share) in shares.items():
        parent = "mlp" if name == "down_proj" else "self_attn"
        assert ranks[f"layers.31.{parent}.{name}"] / smaller == pytest.approx(share, abs=1e-3)


def test_keeping_everything_leaves_every_linear_dense(tiny_config: ModelConfig) -> None:
    assert uniform_ranks(tiny_config, 1) == {}


@pytest.mark.parametrize("keep", [0, -0.5, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(tiny_config: ModelConfig, keep: float) -> None:
    with pytest.raises(UsageError, match=r"keep: expected more than 0 and at most 1"):
        uniform_ranks(tiny_config, keep)


def test_stored_bytes_of_a_dense_model_are_its_block_weights(tiny_config: ModelConfig) -> None:
    config = replace(tiny_config, dim=64, ffn_dim=176, n_layers=3)
    numbers = 3 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 176)
    assert linear_bytes(Llama(config)) == 4 * numbers
    assert linear_bytes(Llama(config).bfloat16()) == 2 * numbers
