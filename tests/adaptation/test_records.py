"""Records: what is read, what of it is learned, and how it is packed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.adaptation.records import Record, RecordSource, collate, encode_records, pack_records, read_records
from puna.errors import BadData, UsageError
from puna.tokens.learning import learn_tokenizer

TOKENIZER = learn_tokenizer(["the llama walks over the puna. " * 20], 280)


def write(folder: Path, *lines: object) -> Path:
    path = folder / "records.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def encoded(*lengths: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Records of ids that count up, the first half given, the rest learned."""
    return [(np.arange(n) + 100 * i, np.arange(n) >= n // 2) for i, n in enumerate(lengths)]


def test_texts_and_pairs_are_read_in_order(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"text": "one"}, "", {"prompt": "a", "completion": "b\u2028c"}, '  {"text": "x\u2028y\u0085z"}  '
    )
    records, counts = read_records([path])
    expected = [("", "one"), ("a", "b\u2028c"), ("", "x\u2028y\u0085z")]
    assert [(record.prompt, record.completion) for record in records] == expected
    assert (counts.used, counts.dropped, counts.reasons) == (3, 0, {})


def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    assert [record.completion for record in read_records([tmp_path / "a.jsonl"])[0]] == ["one", "two"]


def test_text_files_and_folders_are_records_whole(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text(f"text {name}\n")
    records, counts = read_records([tmp_path / "texts", write(tmp_path, {"text": "c"})])
    assert [record.completion for record in records] == ["text a\n", "text b\n", "c"]
    assert counts.used == 3


@pytest.mark.parametrize("key", ["messages", "question", "instruction"])
def test_kinds_that_are_not_built_yet_are_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match=rf"records\.jsonl:2: records with '{key}'"):
        read_records([write(tmp_path, {"text": "one"}, {key: "x"})])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object"),
        ({"text": 5}, "neither text nor prompt and completion"),
        ({"prompt": "a"}, "neither text nor prompt and completion"),
        ({"prompt": "a", "completion": " "}, "nothing to learn"),
        ('{"text": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_one_bad_line_in_a_hundred_is_dropped_and_counted_more_are_not(tmp_path: Path, line: object, why: str) -> None:
    good = [{"text": f"record {number}"} for number in range(99)]
    records, counts = read_records([write(tmp_path, *good, line)])
    assert (len(records), counts.dropped, counts.reasons) == (99, 1, {why: 1})
    with pytest.raises(BadData, match=rf"1 of 99 records.*records\.jsonl:99: {why}"):
        read_records([write(tmp_path, *good[1:], line)])


def test_nothing_to_read_is_bad_data(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path / "none", write(tmp_path, "")):
        with pytest.raises(BadData):
            read_records([path])


def test_only_the_completion_and_the_end_are_learned() -> None:
    [(ids, learn)] = encode_records([Record(prompt="the llama", completion=" walks")], TOKENIZER, seq=64)
    prompt, completion = TOKENIZER.encode("the llama"), TOKENIZER.encode(" walks")
    assert ids.tolist() == [TOKENIZER.bos_id, *prompt, *completion, TOKENIZER.eos_ids[0]]
    assert learn.tolist() == [False] * (1 + len(prompt)) + [True] * (len(completion) + 1)


@given(prompt=st.text(max_size=30), completion=st.text(min_size=1, max_size=60), seq=st.integers(1, 20))
def test_every_learned_id_is_a_target_once_however_it_is_cut(prompt: str, completion: str, seq: int) -> None:
    record = Record(prompt=prompt, completion=completion)
    pieces = list(encode_records([record], TOKENIZER, seq))
    targets = [int(i) for ids, learn in pieces for i, is_learned in zip(ids[1:], learn[1:], strict=True) if is_learned]
    assert targets == [*TOKENIZER.encode(completion), TOKENIZER.eos_ids[0]]
    assert all(2 <= len(ids) <= seq + 1 for ids, _ in pieces)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=20), st.integers(0, 5))
def test_packing_keeps_every_record_whole_and_once(lengths: list[int], seed: int) -> None:
    records = encoded(*lengths)
    rows = pack_records(records, seq=8, seed=seed)
    found = []
    for row in rows:
        for number in range(row.documents.max() + 1):
            here = row.documents == number
            found.append((*row.ids[here].tolist(), int(row.targets[here][-1])))
            index = found[-1][0] // 100
            assert row.keep[here].tolist() == records[index][1][1:].tolist()
        assert not row.keep[row.documents < 0].any()
    assert sorted(found) == sorted(tuple(ids.tolist()) for ids, _ in records)
    assert pack_records([], seq=8, seed=seed) == []


def test_packed_records_do_not_see_each_other(tiny) -> None:
    rows = pack_records(encoded(5, 4, 3), seq=16, seed=0)
    packed = collate(rows)
    assert len(rows) == 1
    hidden_TD = tiny.hidden(packed.ids_BT, None, packed.documents_BT)[0]
    for number in range(3):
        here = packed.documents_BT[0] == number
        alone_TD = tiny.hidden(packed.ids_BT[:, here])[0]
        assert (hidden_TD[here] - alone_TD).abs().max() <= 1e-5 * alone_TD.abs().max()


def test_rows_of_one_record_need_no_documents() -> None:
    assert collate(pack_records(encoded(9, 9), seq=8, seed=0)).documents_BT is None


def test_each_epoch_visits_every_row_once_from_wherever_one_starts() -> None:
    rows = pack_records(encoded(*[9] * 6), seq=8, seed=0)
    source = RecordSource(rows, batch=2, micro_batch=1, seed=3)
    steps = [[int(batch.ids_BT[0, 0]) for batch in source.batches(step)] for step in range(9)]
    for epoch in range(3):
        assert sorted(start for step in steps[3 * epoch : 3 * epoch + 3] for start in step) == [
            0,
            100,
            200,
            300,
            400,
            500,
        ]
    assert steps[:3] != steps[3:6]
    [jumped] = RecordSource(rows, batch=2, micro_batch=2, seed=3).batches(7)
    assert jumped.ids_BT[:, 0].tolist() == steps[7]
    assert jumped.keep_BT.dtype == torch.bool
    with pytest.raises(BadData, match="no record is left"):
        RecordSource([], batch=1, micro_batch=1, seed=0)
