"""One file as texts, whatever it is packed in; what is broken is told by its place and never grows in memory."""

import gzip
import json
import random
import sys

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from puna.errors import MissingExtra
from puna.text import reading
from puna.text.reading import holds_lines, read_entries

PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def line_of(text):
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"


def texts_of(path):
    return [entry.text for entry in read_entries(path) if entry.fault is None]


def faults_of(path):
    return [(entry.name.rpartition(":")[2], entry.fault) for entry in read_entries(path) if entry.fault is not None]


def noise(count, seed=0):
    """Text that packs to about half its size."""
    return random.Random(seed).randbytes(count // 2).hex()


@pytest.mark.parametrize("packing", PACKERS)
def test_text_and_lines_are_exact_however_they_are_packed(tmp_path, packing):
    texts = ["one\r\n", 'a "quoted"\u2028line', "大漠\x00孤煙", noise(3_000_000)]
    (tmp_path / f"a.jsonl{packing}").write_bytes(PACKERS[packing](b"".join(map(line_of, texts))))
    (tmp_path / f"b.md{packing}").write_bytes(PACKERS[packing](b"\xef\xbb\xbf# \xe4\xbd\xa0\r\n"))
    assert texts_of(tmp_path / f"a.jsonl{packing}") == texts
    assert texts_of(tmp_path / f"b.md{packing}") == ["# 你\r\n"]
    assert holds_lines(tmp_path / f"a.jsonl{packing}")
    assert not holds_lines(tmp_path / f"b.md{packing}")


def test_frames_in_a_row_are_one_file(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(line_of(f"{number} {noise(5000)}")) for number in range(5)))
    assert [text[0] for text in texts_of(path)] == list("01234")


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("left", [0.5, 0.999])
def test_a_cut_file_gives_the_lines_before_the_cut_and_then_an_error(tmp_path, packing, left):
    texts = [f"{number} {noise(10_000, number)}" for number in range(100)]
    data = PACKERS[packing](b"".join(map(line_of, texts)))
    (tmp_path / f"a.jsonl{packing}").write_bytes(data[: int(left * len(data))])
    found = []
    with pytest.raises((EOFError, ValueError)):
        found.extend(entry.text for entry in read_entries(tmp_path / f"a.jsonl{packing}"))
    assert len(found) > 20
    assert found == texts[: len(found)]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_bytes_that_are_not_packed_at_all_are_an_error(tmp_path, packing):
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(b"plain text")
    with pytest.raises((OSError, ValueError)):
        list(read_entries(path))


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, packing, name):
    path = tmp_path / f"{name}{packing}"
    path.write_bytes(gzip.compress(b" " * 4_000_000, 9) if packing == ".gz" else zstandard.compress(b" " * 40_000_000))
    with pytest.raises(ValueError, match="1000 times"):
        list(read_entries(path))


def test_a_large_text_comes_in_pieces_cut_at_blank_lines_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_TEXT_BYTES", 100)
    paragraphs = "".join(f"{number} 大漠孤煙直\n\n" for number in range(30))
    for text in (paragraphs, "x" * 250, "漠" * 200, "line\n" * 70):
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        entries = list(read_entries(tmp_path / "a.txt"))
        assert "".join(entry.text for entry in entries) == text
        assert len(entries) > 2
        assert all(len(entry.text.encode()) <= 100 for entry in entries)
        assert [entry.name.rpartition("#")[2] for entry in entries] == [str(n) for n in range(len(entries))]
        if text == paragraphs:
            assert all(entry.text.endswith("\n\n") for entry in entries)


def test_the_rows_of_a_parquet_are_read_and_bad_ones_named(tmp_path):
    path, texts = tmp_path / "a.parquet", [f"row {number} 大漠" for number in range(1000)]
    column: list[str | None] = [*texts]
    column[3], column[700] = None, "  "
    table = pa.table({"id": range(1000), "text": column})
    parquet.write_table(table, path, row_group_size=300, compression="zstd")
    assert texts_of(path) == [text for number, text in enumerate(texts) if number not in (3, 700)]
    assert [place for place, _ in faults_of(path)] == ["4", "701"]
    assert holds_lines(path)


@pytest.mark.parametrize(
    ("values", "kind", "bad"),
    [
        (["a", "b"], pa.large_string(), 0),
        (["a", "a"], pa.dictionary(pa.int32(), pa.string()), 0),
        ([1, 2], pa.int64(), 2),
        ([b"a", b"\xff"], pa.binary(), 2),
        ([["a"], ["b"]], pa.list_(pa.string()), 2),
    ],
)
def test_a_column_of_another_kind_gives_text_or_bad_rows(tmp_path, values, kind, bad):
    parquet.write_table(pa.table({"text": pa.array(values, kind)}), tmp_path / "a.parquet")
    assert len(faults_of(tmp_path / "a.parquet")) == bad
    assert texts_of(tmp_path / "a.parquet") == ([] if bad else values)


def test_bytes_in_a_string_column_that_are_not_utf8_are_one_bad_row(tmp_path):
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"\xff\xfeb"))
    parquet.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet") == ["b"]
    assert [place for place, _ in faults_of(tmp_path / "a.parquet")] == ["1"]


def test_a_parquet_that_is_none_or_has_no_text_is_an_error_that_says_so(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"body": ["x"], "id": [1]}), path)
    with pytest.raises(ValueError, match="column 'text', got body, id"):
        list(read_entries(path))
    data = path.read_bytes()
    for broken in (b"", b"PAR1", data[:-20], data[:40] + b"\xff" * 20 + data[60:], b"text\n" * 100):
        path.write_bytes(broken)
        with pytest.raises((OSError, ValueError)):
            list(read_entries(path))


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("a.parquet", "pyarrow", "reading parquet needs pyarrow"),
        ("a.txt.zst", "zstandard", "reading .zst needs zstandard"),
    ],
)
def test_without_its_package_a_kind_is_a_missing_extra_and_the_others_are_read(
    tmp_path, monkeypatch, name, module, message
):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(MissingExtra, match=message) as caught:
        list(read_entries(tmp_path / name))
    assert caught.value.hint == "pip install 'puna[data]'"
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line_of("read")))
    assert texts_of(tmp_path / "b.jsonl.gz") == ["read"]
