"""Which tokens a step sees is a function of (data, seed, step) alone."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import BadData
from puna.text.mixture import Mixture
from puna.tokens.shards import Shards
from puna.training.batches import RowSource, ordered_windows
from puna.training.config import StepBudget, TrainingConfig
from puna.training.rows import cut_rows


def shards(tokens: int, first: int = 0) -> Shards:
    """`tokens` ids that count up from `first`, in documents of 7."""
    ends = np.array([*range(7, tokens, 7), tokens])
    return Shards(
        tokens=np.arange(first, first + tokens), document_ends=ends, vocab_size=1 << 20, eos_id=0,
        tokenizer_sha256="", sha256="", sources=("text",), bytes=tokens,
    )  # fmt: skip


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"budget": StepBudget(steps=1), "batch": 2, "micro_batch": 2, "seq": 4, **changes})


def source(*sizes: int, weights: tuple[int, ...] = (1,), **changes: Any) -> RowSource:
    settings = config(**changes)
    rows = [cut_rows(shards(size, 10_000 * index), settings) for index, size in enumerate(sizes)]
    return RowSource(rows, Mixture(weights=weights), settings)


def starts(source: RowSource, step: int) -> list[int]:
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


def _sequential(read: RowSource) -> list[list[int]]:
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


@given(seq=st.integers(1, 20), sources=st.integers(1, 2), seed=st.integers(0, 99))
def test_packed_documents_too_are_read_once_an_epoch_in_orders_of_their_own(seq: int, sources: int, seed: int) -> None:
    sizes = (97, 45)[:sources]
    settings = {"packing": "documents", "seq": seq, "batch": 1, "micro_batch": 1, "seed": seed}
    read = source(*sizes, weights=(1,) * sources, **settings)
    rows = [len(cut_rows(shards(size), config(**settings))) for size in sizes]
    for index, size in enumerate(sizes):
        for epoch in range(2):
            steps = (sources * turn + index for turn in range(epoch * rows[index], (epoch + 1) * rows[index]))
            kept = [batch.ids_BT[batch.keep_BT] for step in steps for batch in read.batches(step)]
            inputs = sorted(int(id_) - 10_000 * index for ids in kept for id_ in ids)
            assert inputs == [id_ for id_ in range(size) if (id_ + 1) % 7 and id_ + 1 < size]


def test_a_split_into_micro_batches_leaves_packed_rows_as_they_are() -> None:
    whole, split = (source(401, packing="documents", seq=10, batch=4, micro_batch=n).batches(2) for n in (4, 1))
    assert [len(batch.ids_BT) for batch in split] == [1, 1, 1, 1]
    for name in ("ids_BT", "targets_BT", "keep_BT", "positions_BT", "documents_BT"):
        assert torch.equal(getattr(whole[0], name), torch.cat([getattr(batch, name) for batch in split])), name


def test_a_step_names_the_documents_it_reads() -> None:
    named = source(401, seed=3).describe(0)
    read = starts(source(401, seed=3), 0)
    assert named == ", ".join(
        f"source 0: document {start // 7}" if start // 7 == (start + 4) // 7
        else f"source 0: documents {start // 7} to {start // 7 + 1}"
        for start in read
    )  # fmt: skip
    text = replace(shards(24), document_ends=np.array([4, 10, 11, 21, 24]))  # 3, 5, none, 5 + 4, 2 targets
    settings = config(packing="documents", seq=5, batch=4, micro_batch=2)
    read = RowSource([cut_rows(text, settings)], Mixture(weights=(1,)), settings, names=["poems"])
    assert sorted(re.findall(r"poems: documents? [^p]*[0-9]", read.describe(0))) == [
        "poems: document 1", "poems: document 3", "poems: document 3", "poems: documents 0, 4",
    ]  # fmt: skip


def test_validation_reads_windows_from_the_start() -> None:
    batches = ordered_windows(shards(42), seq=4, batch=3, limit=7)
    assert [len(batch.ids_BT) for batch in batches] == [3, 3, 1]
    assert [int(row[0]) for batch in batches for row in batch.ids_BT] == [0, 4, 8, 12, 16, 20, 24]


def test_held_out_text_shorter_than_a_window_is_one_shorter_window() -> None:
    [batch] = ordered_windows(shards(3), seq=8, batch=2)
    assert batch.ids_BT.tolist() == [[0, 1]]
    with pytest.raises(BadData, match="at least 2 tokens"):
        ordered_windows(shards(1), seq=8, batch=2)
