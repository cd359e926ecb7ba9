"""Records: what each line says, whatever its kind, and why it is none."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from puna.adaptation import records
from puna.adaptation.records import Fault, Record, RecordSettings, read_records
from puna.errors import BadData, UsageError

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
TURNS += [{"role": "assistant", "content": "Hello"}]


def write(folder: Path, *lines: object, name: str = "records.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def read(*paths: Path, **settings: Any) -> list[Record | Fault]:
    return list(read_records(paths, RecordSettings(**settings)))


def said(found: list[Record | Fault]) -> list[tuple[str, ...]]:
    """Each record's kind and what is said in it, a fault's reason."""
    return [
        (each.reason,) if isinstance(each, Fault) else (each.kind, *(message.content for message in each.messages))
        for each in found
    ]


def test_every_line_has_a_kind_of_its_own(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"messages": TURNS},
        {"prompt": "a", "completion": "b\u2028c"},
        {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "Add. 1, 2 3"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"instruction": "Say ho.", "output": "ho"},
        "",
        {"question": "q", "answer": "a"},
        '  {"text": "x\u2028y\u0085z"}  ',
    )
    assert said(read(path)) == [
        ("messages", "Be brief.", "Hi", "Hello"),
        ("pair", "a", "b\u2028c"),
        ("instruction", "Add.\n\n1, 2", "3"),
        ("instruction", "Say hi.", "hi"),
        ("instruction", "Say ho.", "ho"),
        ("question", "q", "a"),
        ("text", "x\u2028y\u0085z"),
    ]
    assert read(path)[-1].place == f"{path}:8"
    assert {record.file for record in read(path) if isinstance(record, Record)} == {str(path)}


def test_named_fields_come_first_and_other_lines_stay_what_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, {"ask": "q", "say": "a", "text": "t"}, {"text": "t"})
    assert said(read(path, prompt="ask", completion="say")) == [("question", "q", "a"), ("text", "t")]
    path = write(tmp_path, {"prompt": "p", "chosen": "c", "rejected": "r"})
    assert said(read(path, prompt="prompt", completion="chosen"))[-1] == ("question", "p", "c")
    for names in ({"prompt": "ask"}, {"completion": "say"}, {"prompt": "", "completion": "say"}):
        with pytest.raises(UsageError, match="records: expected prompt and completion"):
            RecordSettings(**names)


def test_preferences_are_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, {"text": "t"}, {"prompt": "p", "chosen": "c", "rejected": "r"})
    with pytest.raises(UsageError, match=r"records\.jsonl:2: a record with 'chosen' and 'rejected'"):
        read(path)


def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    assert said(read(tmp_path / "a.jsonl")) == [("text", "one"), ("text", "two")]


def test_text_files_and_folders_are_records_whole_and_lines_in_folders_are_read(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text(f"text {name}\n")
    write(tmp_path / "texts", {"question": "q", "answer": "a"}, name="c.jsonl")
    expected = [("question", "q", "a"), ("text", "text a\n"), ("text", "text b\n")]
    assert said(read(tmp_path / "texts")) == expected
    (tmp_path / "lines").mkdir()
    write(tmp_path / "lines", {"text": "t"})
    write(tmp_path / "lines", "not read", name=".hidden.jsonl")
    assert said(read(tmp_path / "lines", tmp_path / "texts" / "a.txt")) == [("text", "t"), ("text", "text a\n")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object"),
        ({"text": 5}, "no known kind of record"),
        ({"prompt": "a"}, "no known kind of record"),
        ({"prompt": "a", "completion": 5}, "no known kind of record"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "no known kind of record"),
        ('{"text": "\\ud800"}', "half a surrogate pair"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages that are not a list of role and content"),
        ({"messages": "hi"}, "messages that are not a list of role and content"),
    ],
)
def test_a_line_that_is_no_record_says_why_and_where(tmp_path: Path, line: object, why: str) -> None:
    path = write(tmp_path, {"text": "t"}, line)
    assert read(path)[1:] == [Fault(place=f"{path}:2", reason=why)]


@pytest.mark.parametrize(("end", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_packed_lines_and_lists_are_records(tmp_path: Path, end: str, pack: Any) -> None:
    lines, listed = tmp_path / f"a.jsonl{end}", tmp_path / f"b.json{end}"
    lines.write_bytes(pack(b'\xef\xbb\xbf{"question": "q", "answer": "a"}\n\n{"text": 5}\n'))
    listed.write_bytes(pack(json.dumps([{"prompt": "p", "completion": "c"}, {"messages": TURNS}]).encode()))
    expected = [("question", "q", "a"), ("no known kind of record",)]
    assert said(read(lines)) == expected
    assert read(lines)[1].place == f"{lines}:3"
    assert said(read(listed)) == [("pair", "p", "c"), ("messages", "Be brief.", "Hi", "Hello")]
    assert read(listed)[1].place == f"{listed}[1]"
    (tmp_path / "t.txt").write_text("a text")
    assert said(read(tmp_path)) == [*expected, *said(read(listed)), ("text", "a text")]
    lines.write_bytes(pack(json.dumps({"text": "t" * 999}).encode())[:-9])
    with pytest.raises(BadData, match=rf"a\.jsonl{end}: .*"):
        read(lines)


def test_a_list_of_objects_is_records_and_any_other_json_a_text(tmp_path: Path) -> None:
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"question": "q", "answer": "a"}, {"ask": "q"}]))
    assert said(read(listed)) == [("question", "q", "a"), ("no known kind of record",)]
    for text in ('{"question": "q", "answer": "a"}', "[1, 2]", "[]", "5"):
        listed.write_text(text)
        assert said(read(listed)) == [("text", text)]
    listed.write_text('[{"ask": "q"}]')
    assert said(read(listed)) == [("no known kind of record",)]
    assert said(read(tmp_path)) == [("text", '[{"ask": "q"}]')]  # in a folder it may be anybody's settings
    listed.write_text('[{"text": "t"}, ')
    assert said(read(listed)) == [("not JSON",)]


def test_a_list_too_long_for_memory_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LIST_BYTES", 20)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a llama"}]))
    with pytest.raises(BadData, match=r"a\.json: a list longer than 20 bytes: give its records a line each"):
        read(tmp_path / "a.json")


def test_rows_are_records(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a"}, {"text": "t"}, {"messages": TURNS}, {"question": "q"}]
    parquet.write_table(pa.Table.from_pylist(rows, schema=_schema()), tmp_path / "a.parquet")
    kinds = [
        ("question", "q", "a"),
        ("text", "t"),
        ("messages", "Be brief.", "Hi", "Hello"),
        ("no known kind of record",),
    ]
    assert said(read(tmp_path / "a.parquet")) == kinds
    assert [each.place for each in read(tmp_path)] == [f"{tmp_path}/a.parquet:{number}" for number in (1, 2, 3, 4)]


def _schema() -> pa.Schema:
    turn = pa.struct({"role": pa.string(), "content": pa.string()})
    texts = {name: pa.string() for name in ("question", "answer", "text")}
    return pa.schema({**texts, "messages": pa.list_(turn)})


def test_a_line_too_long_is_a_fault_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.text.reading.MAX_LINE_BYTES", 40)
    path = write(tmp_path, {"text": "t" * 60}, {"text": "t"})
    assert read(path)[0] == Fault(place=f"{path}:1", reason="a line too long")
    assert said(read(path)[1:]) == [("text", "t")]


def test_nothing_to_read_is_bad_data(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path / "none"):
        with pytest.raises(BadData):
            read(path)
