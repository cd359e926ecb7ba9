"""A build that was killed goes on, and ends with the bytes of one that was not."""

import json
import random
import signal
import subprocess
import sys

import pytest

from puna.errors import BadData, RunLocked
from puna.files import JOURNAL, building_folder, lock_folder
from puna.text.corpus import DocumentStream
from puna.tokens import shards
from puna.tokens.learning import learn_tokenizer
from puna.tokens.shards import build_shards, open_shards
from puna.tokens.tokenizer import Tokenizer, load_tokenizer

SYNC_BYTES = 4000
KILLED = """
import os, signal, sys
from pathlib import Path
from puna import files
from puna.text.corpus import DocumentStream
from puna.tokens import shards
from puna.tokens.tokenizer import load_tokenizer

text, tokenizer, out, kind, count = sys.argv[1:]
left = int(count)

def dying(original):
    def call(*args, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **named)
    return call

if kind == "write":
    files.AppendedFile.write = dying(files.AppendedFile.write)
else:
    os.fsync, Path.rename, Path.replace = map(dying, (os.fsync, Path.rename, Path.replace))
shards.SYNC_BYTES = 4000
stream = DocumentStream([Path(text)])
shards.build_shards(stream, load_tokenizer(Path(tokenizer)), Path(out), inputs=stream.fingerprint())
"""


class Counting(Tokenizer):
    """A tokenizer that counts the texts it was given."""

    encoded = 0

    def encode(self, text, bos=False, parse_special=False):
        self.encoded += 1
        return super().encode(text, bos, parse_special)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """400 documents, some of them twice, and a bad line."""
    path, rng = tmp_path_factory.mktemp("text") / "x.jsonl", random.Random(0)
    lines = [json.dumps({"text": f"{number} the llama grazes 羊驼 " * rng.randint(1, 5)}) for number in range(400)]
    path.write_text("\n".join([*lines[:200], *lines[:50], "{", *lines[200:]]) + "\n")
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    learn_tokenizer(["the llama grazes", "羊驼"], 275).save(folder)
    return folder


@pytest.fixture
def tokenizer(saved):
    loaded = load_tokenizer(saved)
    loaded.__class__ = Counting
    return loaded


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(shards, "SYNC_BYTES", SYNC_BYTES)


def build(text, tokenizer, out):
    stream = DocumentStream([text])
    return build_shards(stream, tokenizer, out, inputs=stream.fingerprint())


def kill(text, saved, out, kind, count):
    """Whether a build was killed at the given write, or at the given step to the disk; else it ended."""
    command = [sys.executable, "-c", KILLED, str(text), str(saved), str(out), kind, str(count)]
    code = subprocess.run(command, check=False).returncode
    assert code in (0, -signal.SIGKILL)
    return code != 0


def stored(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_after(stream, count):
    for number, document in enumerate(stream):
        if number == count:
            raise KeyboardInterrupt
        yield document


def interrupt(text, tokenizer, out, count=250):
    stream = DocumentStream([text])
    with pytest.raises(KeyboardInterrupt):
        build_shards(stop_after(stream, count), tokenizer, out, inputs=stream.fingerprint())
    tokenizer.encoded = 0


def places(count):
    """Where to kill: early, late, and at the steps of the end."""
    rng = random.Random(7)
    return [("write", rng.randint(200, 400)), ("write", rng.randint(400, 800)), ("step", 20), ("step", 31)][:count]


@pytest.mark.parametrize(("kind", "count"), places(4))
def test_a_killed_build_goes_on_and_gives_the_bytes_of_one_that_was_not(text, saved, tokenizer, tmp_path, kind, count):
    clean = build_shards(DocumentStream([text]), tokenizer, tmp_path / "clean")
    assert tokenizer.encoded == 400
    assert kill(text, saved, tmp_path / "out", kind, count)
    assert not (tmp_path / "out").exists()
    assert (building_folder(tmp_path / "out") / JOURNAL).is_file()
    tokenizer.encoded = 0
    assert build(text, tokenizer, tmp_path / "out").sha256 == clean.sha256
    assert tokenizer.encoded < 380
    assert stored(tmp_path / "out") == stored(tmp_path / "clean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "out"]


@pytest.mark.nightly
def test_a_build_killed_at_any_step_to_the_disk_goes_on(text, saved, tokenizer, tmp_path):
    clean = build_shards(DocumentStream([text]), tokenizer, tmp_path / "clean")
    for count in range(1, 200):
        out = tmp_path / str(count) / "out"
        was_killed = kill(text, saved, out, "step", count)
        assert build(text, tokenizer, out).sha256 == clean.sha256
        assert stored(out) == stored(tmp_path / "clean")
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        if not was_killed:
            break
    assert not was_killed


def test_an_interrupted_build_keeps_what_it_did_and_one_that_hardly_began_nothing(text, tokenizer, tmp_path):
    interrupt(text, tokenizer, tmp_path / "out", 5)
    assert list(tmp_path.iterdir()) == []
    interrupt(text, tokenizer, tmp_path / "out", 250)
    build(text, tokenizer, tmp_path / "out")
    assert 150 <= tokenizer.encoded < 250


def test_other_inputs_or_another_tokenizer_begin_anew(text, tokenizer, tmp_path):
    other = learn_tokenizer(["the llama grazes", "羊驼"], 276)
    interrupt(text, tokenizer, tmp_path / "out")
    assert build(text, other, tmp_path / "out").tokenizer_sha256 == other.sha256
    interrupt(text, tokenizer, tmp_path / "more")
    (tmp_path / "y.jsonl").write_bytes(text.read_bytes())
    build(tmp_path / "y.jsonl", tokenizer, tmp_path / "more")
    assert tokenizer.encoded == 400


def test_whatever_was_changed_in_the_folder_is_not_gone_on_from(text, tokenizer, tmp_path):
    clean = build_shards(DocumentStream([text]), tokenizer, tmp_path / "clean")
    rng = random.Random(0)
    for name in ("staged/tokens.bin", "staged/document_ends.bin", "tokens", "documents", "schema", "ends_sha256"):
        interrupt(text, tokenizer, tmp_path / "out")
        work = building_folder(tmp_path / "out")
        path = work / name
        if path.exists():
            data = path.read_bytes()
            place = rng.randrange(len(data) // 2)
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        else:
            journal = json.loads((work / JOURNAL).read_text())
            (work / JOURNAL).write_text(json.dumps(journal | {name: 7}))
        assert build(text, tokenizer, tmp_path / "out").sha256 == clean.sha256
        assert tokenizer.encoded == 400


def test_a_journal_or_a_file_that_is_gone_is_no_place_to_go_on_from(text, tokenizer, tmp_path):
    for name in (JOURNAL, "staged/tokens.bin", "staged/document_ends.bin"):
        interrupt(text, tokenizer, tmp_path / "out")
        (building_folder(tmp_path / "out") / name).unlink()
        build(text, tokenizer, tmp_path / "out")
        assert tokenizer.encoded == 400


@pytest.mark.parametrize("change", ["another text", "fewer texts"])
def test_other_texts_under_the_same_name_are_refused_and_the_next_build_begins_anew(text, tokenizer, tmp_path, change):
    inputs = DocumentStream([text]).fingerprint()
    interrupt(text, tokenizer, tmp_path / "out")
    documents = list(DocumentStream([text]))
    documents[10:] = documents[11:] if change == "another text" else documents[10:40]
    with pytest.raises(BadData, match="not those that the interrupted build read"):
        build_shards(documents, tokenizer, tmp_path / "out", inputs=inputs)
    assert list(tmp_path.iterdir()) == []
    build_shards(documents, tokenizer, tmp_path / "out", inputs=inputs)
    assert tokenizer.encoded == len(documents)


def test_two_builds_of_one_folder_do_not_meet(text, tokenizer, tmp_path):
    build(text, tokenizer, tmp_path / "out")
    with lock_folder(building_folder(tmp_path / "out")), pytest.raises(RunLocked):
        build(text, tokenizer, tmp_path / "out")
    assert len(open_shards(tmp_path / "out").document_ends) == 400
