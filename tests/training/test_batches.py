"""Which tokens a step sees is a function of (data, seed, step) alone."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import BadData
from puna.text.mixture import Mixture
from puna.tokens.shards import Shards
from puna.training.batches import WindowSource, ordered_windows
from puna.training.config import StepBudget, TrainingConfig


def shards(tokens: int, first: int = 0) -> Shards:
    """`tokens` ids that count up from `first`, in documents of 7."""
    ends = np.array([*range(7, tokens, 7), tokens])
    return Shards(
        tokens=np.arange(first, first + tokens), document_ends=ends, vocab_size=1 << 20, eos_id=0,
        tokenizer_sha256="", sha256="", sources=("text",), bytes=tokens,
    )  # fmt: skip


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"budget": StepBudget(steps=1), "batch": 2, "micro_batch": 2, "seq": 4, **changes})


def source(*sizes: int, weights: tuple[int, ...] = (1,), **changes: Any) -> WindowSource:
    parts = [shards(size, 10_000 * index) for index, size in enumerate(sizes)]
    return WindowSource(parts, Mixture(weights=weights), config(**changes))


def starts(source: WindowSource, step: int) -> list[int]:
    return [int(row[0]) for batch in source.batches(step) for row in batch.ids_BT]


@given(windows=st.integers(1, 60), seed=st.integers(0, 1 << 62))
def test_each_epoch_is_a_permutation_of_the_windows(windows: int, seed: int) -> None:
    read = source(4 * windows + 1, batch=1, micro_batch=1, seed=seed)
    for epoch in range(3):
        seen = [starts(read, step)[0] for step in range(epoch * windows, (epoch + 1) * windows)]
        assert sorted(seen) == [4 * index for index in range(windows)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(start for step in range(first, first + 50) for start in starts(source(401, seed=seed), step))
        for seed in (0, 1)
        for first in (0, 50)
    }
    assert len(orders) == 4


@given(steps=st.lists(st.integers(0, 400), min_size=1, max_size=8))
def test_reading_at_random_is_reading_in_order(steps: list[int]) -> None:
    build = lambda: source(101, 61, 33, weights=(5, 2, 1), batch=3, micro_batch=3)  # noqa: E731
    sequential = _sequential(build())
    read = build()
    assert [starts(read, step) for step in steps] == [sequential[step] for step in steps]


def _sequential(read: WindowSource) -> list[list[int]]:
    return [starts(read, step) for step in range(401)]


def test_sources_are_mixed_by_weight_exactly() -> None:
    read = source(401, 401, weights=(3, 1), batch=4, micro_batch=4)
    for step in range(20):
        served = Counter(start // 10_000 for start in starts(read, step))
        assert served == {0: 3, 1: 1}


def test_targets_are_the_next_ids_and_the_split_into_micro_batches_changes_nothing() -> None:
    whole, split = source(401, batch=4, micro_batch=4).batches(3), source(401, batch=4, micro_batch=1).batches(3)
    assert [len(batch.ids_BT) for batch in whole] == [4]
    assert [len(batch.ids_BT) for batch in split] == [1, 1, 1, 1]
    assert torch.equal(whole[0].ids_BT, torch.cat([batch.ids_BT for batch in split]))
    assert torch.equal(whole[0].targets_BT, whole[0].ids_BT + 1)
    assert whole[0].documents_BT is None


def test_isolated_documents_are_numbered_within_each_window() -> None:
    [batch] = source(401, isolate_documents=True).batches(0)
    assert batch.documents_BT is not None
    expected = (batch.ids_BT // 7) - (batch.ids_BT[:, :1] // 7)
    assert torch.equal(batch.documents_BT.long(), expected)


def test_less_than_one_window_is_bad_data() -> None:
    with pytest.raises(BadData, match="4 tokens are less than one window of 5"):
        source(4)


def test_validation_reads_windows_from_the_start() -> None:
    batches = ordered_windows(shards(42), seq=4, batch=3, limit=7)
    assert [len(batch.ids_BT) for batch in batches] == [3, 3, 1]
    assert [int(row[0]) for batch in batches for row in batch.ids_BT] == [0, 4, 8, 12, 16, 20, 24]


def test_held_out_text_shorter_than_a_window_is_one_shorter_window() -> None:
    [batch] = ordered_windows(shards(3), seq=8, batch=2)
    assert batch.ids_BT.tolist() == [[0, 1]]
    with pytest.raises(BadData, match="at least 2 tokens"):
        ordered_windows(shards(1), seq=8, batch=2)
