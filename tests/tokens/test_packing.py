"""Every target of every document once, in as few rows as best fit decreasing needs."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import BadData
from puna.jobs.demo_text import gather_text
from puna.tokens.packing import pack_documents
from puna.tokens.tokenizer import load_tokenizer

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=60).filter(lambda lengths: max(lengths) > 1)


def rooms(packed, seq: int) -> list[int]:
    """What is left of each row, ascending."""
    return sorted(seq - int(packed.row(index)[1].sum()) for index in range(len(packed)))


def padding(lengths, seq: int) -> float:
    packed = pack_documents(np.cumsum(lengths), seq)
    return 1 - packed.targets / (len(packed) * seq)


@given(lengths=LENGTHS, seq=st.integers(1, 100))
def test_every_target_is_learned_exactly_once_within_its_document(lengths, seq) -> None:
    ends = np.cumsum(lengths)
    packed = pack_documents(ends, seq)
    inputs = []
    for index in range(len(packed)):
        for start, length in zip(*packed.row(index), strict=True):
            first, last = np.searchsorted(ends, (start, start + length), side="right")
            assert first == last  # the last target is of the first input's document
            inputs += range(start, start + length)
    assert sorted(inputs) == sorted(set(range(ends[-1])) - set(ends - 1))
    assert packed.targets == len(inputs)


@given(lengths=LENGTHS, seq=st.integers(1, 100))
def test_only_what_is_longer_than_a_row_is_cut(lengths, seq) -> None:
    packed = pack_documents(np.cumsum(lengths), seq)
    wanted = []
    for targets in (length - 1 for length in lengths):
        wanted += [seq] * (targets // seq) + [targets % seq] * (targets % seq > 0)
    assert sorted(packed.lengths.tolist()) == sorted(wanted)


@given(lengths=LENGTHS, seq=st.integers(1, 100))
def test_rows_are_those_of_best_fit_decreasing_done_piece_by_piece(lengths, seq) -> None:
    packed = pack_documents(np.cumsum(lengths), seq)
    expected: list[int] = []
    for length in sorted(packed.lengths.tolist(), reverse=True):
        fitting = [room for room in expected if room >= length]
        room = min(fitting, default=seq)
        if fitting:
            expected.remove(room)
        expected.append(room - length)
    assert rooms(packed, seq) == sorted(expected)


def test_a_worked_example_packs_as_by_hand() -> None:
    packed = pack_documents(np.cumsum([4, 6, 1, 10, 3]), 5)  # 3, 5, none, 5 + 4, 2 targets
    rows = [[part.tolist() for part in packed.row(index)] for index in range(len(packed))]
    assert rows == [[[4], [5]], [[11], [5]], [[16], [4]], [[0, 21], [3, 2]]]
    assert (len(packed), packed.targets) == (4, 19)


def test_a_row_longer_than_all_documents_holds_them_all() -> None:
    packed = pack_documents(np.cumsum([4, 6, 1, 10]), 1000)
    assert len(packed) == 1
    assert [part.tolist() for part in packed.row(0)] == [[0, 4, 11], [3, 5, 9]]


def test_documents_without_a_single_target_are_bad_data() -> None:
    with pytest.raises(BadData, match="a token to predict, got 3 of a single id each"):
        pack_documents(np.arange(1, 4), 8)


@pytest.mark.parametrize("seq", [128, 512, 2048])
def test_less_than_one_percent_of_rows_of_library_sources_is_padding(seq: int) -> None:
    lengths = [2 + len(document.text.encode()) // 4 for document in gather_text(None).documents]
    assert len(lengths) > 300
    assert padding(lengths, seq) < 0.01


def test_less_than_one_percent_of_rows_of_speeches_is_padding(shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizers/llama3/tokenizer.model")
    text = (shared_data / "texts/tinyshakespeare.txt").read_text(encoding="utf-8")
    lengths = [2 + len(tokenizer.encode(speech)) for speech in text.split("\n\n")]
    for seq in (128, 512, 2048):
        assert padding(lengths, seq) < 0.01


def test_a_million_documents_are_packed_in_seconds() -> None:
    lengths = np.random.default_rng(0).integers(2, 3000, 1_000_000)
    started = time.process_time()
    packed = pack_documents(np.cumsum(lengths), 2048)
    assert time.process_time() - started < 10  # one by one against all open rows would take days
    assert packed.targets == (lengths - 1).sum()
