import gzip
import json
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import BadData, UsageError
from puna.text import reading
from puna.text.corpus import Document, DocumentStream, cut_documents, read_documents, split_documents


def documents_of(texts):
    return [Document(text=text, source="text", name=str(index)) for index, text in enumerate(texts)]


def texts_of(documents):
    return [document.text for document in documents]


def write_lines(path, *lines):
    path.write_bytes(b"\n".join(lines) + b"\n")


def line_of(text):
    return json.dumps({"text": text}).encode()


def test_a_folder_is_read_recursively_in_sorted_order_without_hidden_entries(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name, text in (("b/z.py", "x = 1\n"), ("a.md", "# 你好\n"), (".hidden", "no"), (".git/config", "no")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_documents([tmp_path], source="mine")
    assert texts_of(found.documents) == ["# 你好\n", "x = 1\n"]
    assert {document.source for document in found.documents} == {"mine"}
    assert found.documents[1].name.endswith("b/z.py")


def test_what_exclude_names_is_left_out_with_all_below_it(tmp_path):
    (tmp_path / "test").mkdir()
    for name in ("test/deep.py", "kept.py", "dropped.py"):
        (tmp_path / name).write_text(name)
    found = read_documents([tmp_path], exclude=lambda path: path.name in {"test", "dropped.py"})
    assert texts_of(found.documents) == ["kept.py"]


def test_a_byte_order_mark_goes_and_line_ends_stay(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert texts_of(read_documents([tmp_path]).documents) == ["one\r\ntwo\r\n"]


def test_exact_duplicates_are_dropped_and_counted(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same")
    write_lines(tmp_path / "c.jsonl", line_of("same"), line_of("other"))
    found = read_documents([tmp_path])
    assert texts_of(found.documents) == ["same", "other"]
    assert found.duplicates == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\x00\x01text", "NUL"), (b"\xff\xfea\x00", "NUL"), ("é".encode("latin-1"), "utf-8"), (b" \n", "empty")],
)
def test_files_that_are_no_utf8_text_are_skipped_and_listed(tmp_path, content, reason):
    (tmp_path / "bad.bin").write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    found = read_documents([tmp_path])
    assert texts_of(found.documents) == ["good"]
    (skipped,) = found.skipped
    assert "bad.bin" in skipped
    assert reason in skipped


def test_gzipped_text_and_lines_are_read(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("文本".encode()))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line_of("line")))
    assert texts_of(read_documents([tmp_path]).documents) == ["文本", "line"]


def test_a_cut_gzip_and_a_bomb_are_skipped(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(random.Random(0).randbytes(4000).hex().encode())[:-100])
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b" " * 4_000_000, 9))
    found = read_documents([tmp_path])
    assert texts_of(found.documents) == ["good"]
    assert [skipped.split(":")[0].rsplit("/")[-1] for skipped in found.skipped] == ["bomb.txt.gz", "cut.txt.gz"]
    assert "1000 times" in found.skipped[0]


BAD_LINES = {
    "cut": b'{"text": "half',
    "no object": b"[1]",
    "no text": b'{"body": "x"}',
    "text is no string": b'{"text": 5}',
    "text is empty": b'{"text": ""}',
    "raw NUL": b'{"text": "a\x00b"}',
    "half a surrogate pair": b'{"text": "\\ud800"}',
    "a key twice": b'{"text": "a", "text": "b"}',
    "NaN": b'{"text": "a", "x": NaN}',
    "a 5,000-digit number": b'{"text": "a", "x": ' + b"9" * 5000 + b"}",
    "depth": b"[" * 100_000,
    "latin-1": b'{"text": "\xe9"}',
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_counted_with_its_place_and_the_good_ones_stay_exact(tmp_path, kind):
    good = 'a "quoted"\u2028line\r\n中\x00'
    write_lines(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + line_of(good), BAD_LINES[kind], b"", line_of("last") + b"\r")
    found = read_documents([tmp_path])
    assert texts_of(found.documents) == [good, "last"]
    assert found.bad_lines == 1
    assert "x.jsonl:2:" in found.bad_places[0]


def test_an_endless_line_is_one_bad_line(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 64)
    write_lines(tmp_path / "x.jsonl", line_of("one"), line_of("x" * 300), line_of("three"))
    found = read_documents([tmp_path])
    assert texts_of(found.documents) == ["one", "three"]
    assert found.bad_lines == 1
    assert ":2: longer than 64" in found.bad_places[0]
    assert found.documents[1].name.endswith(":3")


def test_only_the_first_bad_places_are_kept_but_all_are_counted(tmp_path):
    write_lines(tmp_path / "x.jsonl", line_of("one"), *[b"{"] * 30)
    found = read_documents([tmp_path])
    assert found.bad_lines == 30
    assert len(found.bad_places) == 5


def test_a_stream_counts_as_it_goes_and_gives_the_same_documents_again(tmp_path):
    write_lines(tmp_path / "x.jsonl", line_of("one"), b"{", line_of("one"), b"", line_of("two"), line_of("three"))
    stream = DocumentStream([tmp_path])
    documents = iter(stream)
    assert [next(documents).text, next(documents).text] == ["one", "two"]
    assert (stream.documents, stream.duplicates, stream.lines, stream.bad_lines) == (2, 1, 4, 1)
    assert next(documents).text == "three"
    for _ in range(2):
        assert tuple(stream) == read_documents([tmp_path]).documents
        assert (stream.documents, stream.duplicates, stream.lines, stream.bad_lines) == (3, 1, 5, 1)


@pytest.mark.parametrize(("good", "bad", "stops"), [(198, 2, False), (196, 2, True), (99, 1, False), (1, 1, True)])
def test_more_than_one_bad_line_in_a_hundred_stops_a_strict_stream_at_its_end(tmp_path, good, bad, stops):
    write_lines(tmp_path / "x.jsonl", *[b"{"] * bad, *(line_of(str(number)) for number in range(good)))
    stream = DocumentStream([tmp_path], is_strict=True)
    if stops:
        with pytest.raises(BadData, match=rf"{bad} of {good + bad} lines .* the first is .*x.jsonl:1: ") as caught:
            list(stream)
        assert "--anyway" in caught.value.hint
    assert stops or len(list(stream)) == good
    assert len(list(DocumentStream([tmp_path]))) == good


def test_a_strict_stream_stops_early_where_ten_thousand_lines_have_shown_enough(tmp_path):
    lines = [b"{" if number % 50 == 0 else line_of(str(number)) for number in range(30_000)]
    write_lines(tmp_path / "x.jsonl", *lines)
    stream = DocumentStream([tmp_path], is_strict=True)
    with pytest.raises(BadData, match="201 of 10,001 lines"):
        list(stream)


def test_the_documents_before_the_damage_of_a_file_are_kept_and_the_list_says_how_many(tmp_path):
    packed = gzip.compress(b"".join(line_of(f"{n} {random.Random(n).random()}") + b"\n" for n in range(900)))
    (tmp_path / "x.jsonl.gz").write_bytes(packed[:-900])
    found = read_documents([tmp_path])
    assert 100 < len(found.documents) < 900
    assert found.skipped[0].endswith(f"; {len(found.documents)} documents before that were read")


def test_a_fingerprint_changes_with_every_name_size_and_time(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("a.txt", "b/c.txt"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, ns=(1, 1))
    seen = [DocumentStream([tmp_path]).fingerprint()]
    assert DocumentStream([tmp_path]).fingerprint() == seen[0]
    os.utime(tmp_path / "b/c.txt", ns=(1, 2))
    seen.append(DocumentStream([tmp_path]).fingerprint())
    (tmp_path / "b/c.txt").write_text("longer than it was")
    os.utime(tmp_path / "b/c.txt", ns=(1, 2))
    seen.append(DocumentStream([tmp_path]).fingerprint())
    (tmp_path / "a.txt").rename(tmp_path / "d.txt")
    seen.append(DocumentStream([tmp_path]).fingerprint())
    seen.append(DocumentStream([tmp_path], exclude=lambda path: path.name == "d.txt").fingerprint())
    assert len(set(seen)) == 5


def test_nothing_readable_is_an_error_that_says_why(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0")
    with pytest.raises(BadData, match="1 files skipped") as caught:
        read_documents([tmp_path])
    assert "NUL" in caught.value.hint
    with pytest.raises(BadData, match="expected a text file"):
        read_documents([tmp_path / "absent"])


def test_a_linked_folder_cannot_make_reading_endless(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert texts_of(read_documents([tmp_path]).documents) == ["a"]


def test_the_split_depends_on_the_texts_alone_and_loses_none():
    texts = [f"text {index}" for index in range(500)]
    train, held = split_documents(documents_of(texts), held_out=0.1)
    shuffled = random.Random(1).sample(texts, len(texts))
    again, held_again = split_documents(documents_of(shuffled), held_out=0.1)
    assert len(held) == 50
    assert sorted(texts_of(train) + texts_of(held)) == sorted(texts)
    assert set(texts_of(held)) == set(texts_of(held_again))
    assert set(texts_of(train)) == set(texts_of(again))
    assert set(texts_of(split_documents(documents_of(texts), held_out=0.1, seed=1)[1])) != set(texts_of(held))


def test_equal_texts_never_stand_on_both_sides():
    texts = [f"text {index % 40}" for index in range(400)]
    train, held = split_documents(documents_of(texts))
    assert not set(texts_of(train)) & set(texts_of(held))
    assert len(set(texts_of(held))) == 10


def test_too_little_to_split_is_an_error_with_the_number_needed():
    with pytest.raises(BadData, match="19 documents") as caught:
        split_documents(documents_of([str(index) for index in range(19)]))
    assert "20" in caught.value.hint
    assert len(split_documents(documents_of([str(index) for index in range(20)]))[1]) == 10
    with pytest.raises(UsageError):
        split_documents(documents_of(["a"]), held_out=1.0)


@given(st.text("ab\n\r中👩\u200d ", max_size=400), st.integers(1, 100))
def test_the_pieces_of_a_document_joined_are_the_document(text, target):
    pieces = cut_documents(documents_of([text]), target)
    assert "".join(texts_of(pieces)) == text
    assert all(pieces_text for pieces_text in texts_of(pieces)) or text == ""


def test_a_long_play_is_cut_at_blank_lines_into_pieces_of_the_size_asked_for():
    play = "".join(f"SPEAKER {index}:\nWords, words.\nMore words.\n\n" for index in range(5000))
    pieces = cut_documents(documents_of([play, "short"]), 4096)
    assert all(piece.text.endswith("\n\n") for piece in pieces[:-1])
    assert all(2000 < len(piece.text) <= 6144 for piece in pieces[:-1])
    assert pieces[0].name == "0#0"
    assert pieces[-1] == documents_of(["", "short"])[1]
    train, held = split_documents(pieces)
    assert len(train) > len(held) == 10
