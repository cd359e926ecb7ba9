"""What is on disk is whole: the old state or the new one, whatever happens in between; no changed byte is accepted."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.errors import CheckpointMismatch, DiskFull, FormatError, RunLocked
from puna.files import (
    MANIFEST,
    LineLog,
    building_folder,
    free_bytes,
    lock_folder,
    read_json,
    remove_folder,
    resumable_folder,
    sha256_file,
    staged_folder,
    sweep_stale,
    verify_folder,
    write_json,
    write_text,
)

Contents = dict[str, bytes]
OLD: Contents = {"weights.bin": b"old" * 50, "deep/notes.txt": b"old notes", "only-old": b"x"}
NEW: Contents = {"weights.bin": b"new" * 70, "deep/notes.txt": b"new notes", "empty": b""}


def save(final: Path, contents: Contents) -> None:
    with staged_folder(final, {"step": len(contents)}) as folder:
        for name, data in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def stored(folder: Path) -> Contents:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def final(tmp_path: Path) -> Path:
    """A folder in which OLD is saved."""
    save(tmp_path / "run" / "model", OLD)
    return tmp_path / "run" / "model"


def test_a_saved_folder_verifies_and_returns_its_record(final: Path) -> None:
    manifest = verify_folder(final)
    assert stored(final) == OLD
    assert (manifest["schema"], manifest["step"]) == (1, 3)
    assert manifest["files"]["only-old"] == [1, sha256_file(final / "only-old")]


def test_a_second_save_replaces_the_first_and_leaves_nothing_else(final: Path) -> None:
    save(final, NEW)
    verify_folder(final)
    assert stored(final) == NEW
    assert [path.name for path in final.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [ValueError("the work failed"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_exception_while_filling_leaves_the_old_folder(final: Path, error: BaseException) -> None:
    def fill() -> None:
        with staged_folder(final) as folder:
            (folder / "weights.bin").write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        fill()
    assert stored(final) == OLD
    assert [path.name for path in final.parent.iterdir()] == ["model"]


_KILLED_SAVE = """
import os, sys
from pathlib import Path
from puna.files import staged_folder
calls = 0
def dying(original):
    def call(*args, **named):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os._exit(9)
        return original(*args, **named)
    return call
os.fsync, Path.rename, Path.replace = map(dying, (os.fsync, Path.rename, Path.replace))
with staged_folder(Path(sys.argv[1])) as folder:
    for name in ("weights.bin", "deep/notes.txt", "empty"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes({"weights.bin": b"new" * 70, "deep/notes.txt": b"new notes"}.get(name, b""))
"""


def test_a_process_killed_at_any_step_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    """It dies just before its n-th fsync or rename, for every n until one save ends."""
    outcomes = []
    for step in range(1, 30):
        final = tmp_path / str(step) / "model"
        save(final, OLD)
        child = subprocess.run([sys.executable, "-c", _KILLED_SAVE, str(final), str(step)], check=False)
        sweep_stale(final.parent)
        verify_folder(final)
        assert stored(final) in (OLD, NEW)
        assert [path.name for path in final.parent.iterdir()] == ["model"]
        outcomes.append(stored(final) == NEW)
        if child.returncode == 0:
            break
        assert child.returncode == 9
    assert len(outcomes) >= 8
    assert outcomes == sorted(outcomes)
    assert not outcomes[0]
    assert outcomes[-1]


def failing(original: Callable[..., object], code: int, at_call: int) -> Callable[..., object]:
    calls = 0

    def call(*args: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise OSError(code, os.strerror(code))
        return original(*args, **named)

    return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [(os, "fsync", 5), (Path, "rename", 2), (Path, "replace", 1)],
    ids=["fsync", "rename", "replace"],
)
def test_a_full_disk_at_any_step_is_a_disk_full_and_nothing_is_lost(
    final: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, calls: int, code: int
) -> None:
    for at_call in range(1, calls + 1):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, failing(getattr(owner, name), code, at_call))
            with pytest.raises(DiskFull) as caught:
                save(final, NEW)
        assert "bytes are free" in caught.value.message
        assert caught.value.hint
        sweep_stale(final.parent)
        verify_folder(final)
        assert stored(final) == OLD
        assert [path.name for path in final.parent.iterdir()] == ["model"]


def fill_part(final: Path, has_journal: bool) -> None:
    """Until the disk is full."""
    with resumable_folder(final) as (staged, journal):
        (staged / "part.bin").write_bytes(b"part")
        if has_journal:
            write_text(journal, "{}")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_can_be_resumed_outlives_an_error_once_it_has_a_journal(final: Path) -> None:
    save(final, OLD)
    work = building_folder(final)
    for has_journal in (False, True):
        with pytest.raises(DiskFull):
            fill_part(final, has_journal)
        assert (work / "staged" / "part.bin").exists() is has_journal
        assert work.exists() is has_journal
        assert stored(final) == OLD
    with resumable_folder(final) as (staged, journal):
        assert (staged / "part.bin").read_bytes() == b"part"
        assert journal.exists()
        with pytest.raises(RunLocked):
            fill_part(final, False)
    verify_folder(final)
    assert stored(final) == {"part.bin": b"part"}
    assert [path.name for path in final.parent.iterdir()] == ["model"]


def test_another_operating_system_error_is_not_called_a_full_disk(final: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(final):
        raise FileNotFoundError(errno.ENOENT, "no such file", "corpus.txt")


def test_a_folder_that_may_not_be_written_is_a_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(Path.mkdir, errno.EACCES, 1))
    with pytest.raises(DiskFull):
        write_text(tmp_path / "new" / "a.txt", "a")


def mutate(folder: Path, random_: random.Random) -> str:
    """Change a saved folder in one way; return what was done."""
    path = random_.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = bytearray(path.read_bytes())
    kind = random_.choice(["flip", "insert", "cut", "swap", "remove", "extra", "rename", "manifest"])
    at = random_.randrange(len(data)) if data else 0
    if kind == "flip" and data:
        data[at] ^= 1 << random_.randrange(8)
        path.write_bytes(data)
    elif kind == "insert" or (not data and kind in ("flip", "cut", "swap")):
        path.write_bytes(data[:at] + random_.randbytes(1) + data[at:])
    elif kind == "cut":
        path.write_bytes(data[: random_.randrange(len(data))])
    elif kind == "swap":
        path.write_bytes(bytes(256 - byte if byte else 1 for byte in data))
    elif kind == "remove":
        path.unlink()
    elif kind == "extra":
        (folder / f"extra-{at}").write_bytes(b"")
    elif kind == "rename":
        path.rename(path.with_name(path.name + "x"))
    else:
        manifest = json.loads((folder / MANIFEST).read_text())
        key = random_.choice(["step", "schema", "sha256", "files", "new"])
        manifest[key] = random_.choice([None, 7, "1", [], {}])
        (folder / MANIFEST).write_text(json.dumps(manifest))
    return f"{kind} {path.name} at {at}"


def test_no_mutation_of_a_saved_folder_is_accepted(final: Path, tmp_path: Path) -> None:
    random_, accepted = random.Random(0), []
    for turn in range(400):
        folder = tmp_path / f"copy-{turn}"
        shutil.copytree(final, folder)
        done = mutate(folder, random_)
        with contextlib.suppress(CheckpointMismatch, FormatError):
            verify_folder(folder)
            accepted.append(done)
        remove_folder(folder)
    assert accepted == []


def test_the_first_changed_file_is_named(final: Path) -> None:
    (final / "deep/notes.txt").write_bytes(b"old_notes")
    with pytest.raises(CheckpointMismatch, match=r"deep/notes\.txt: changed"):
        verify_folder(final)
    (final / "deep/notes.txt").unlink()
    with pytest.raises(CheckpointMismatch, match=r"deep/notes\.txt: missing"):
        verify_folder(final)


@pytest.mark.timeout(20)
def test_a_second_process_is_refused_at_once_and_told_who_works_here(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from puna.files import lock_folder\n"
    script += "with lock_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            start = time.monotonic()
            with pytest.raises(RunLocked, match=rf"process {holder.pid}\b"), lock_folder(tmp_path):
                pytest.fail("two processes hold the lock")
            assert time.monotonic() - start < 1
        finally:
            holder.send_signal(signal.SIGKILL)
    with lock_folder(tmp_path):  # a dead process holds nothing
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_lock_is_free_again_after_an_error_inside(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), lock_folder(tmp_path):
        raise ValueError("inside")
    with lock_folder(tmp_path):
        pass


def test_a_log_is_cut_back_to_where_the_checkpoint_was(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.jsonl"
    log = LineLog(path)
    log.append({"step": 1, "text": "峰"})
    offset = log.sync()
    log.append({"step": 2})
    log.append({"step": 3})
    log.close()
    again = LineLog(path, offset)
    again.append({"step": 2, "again": True})
    assert again.sync() == path.stat().st_size
    again.close()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"step": 1, "text": "峰"}, {"step": 2, "again": True}]
    assert len(path.read_bytes().splitlines()[0]) == offset - 1


def test_a_log_shorter_than_its_checkpoint_is_not_stretched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    log = LineLog(path, offset=1000)
    log.append({"step": 2})
    log.close()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_sweeping_removes_the_unfinished_and_restores_what_was_moved_aside(tmp_path: Path) -> None:
    for name in ("a.tmp-123", "b.puna-old", "c", "c.puna-old", "d.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "from").write_text(name)
    (tmp_path / "d.json.tmp-9").write_text("half")
    sweep_stale(tmp_path)
    assert {path.name: (path / "from").read_text() for path in tmp_path.iterdir()} == {
        "b": "b.puna-old",
        "c": "c",
        "d.old": "d.old",
    }
    sweep_stale(tmp_path / "absent")


@pytest.mark.parametrize("text", ["{", '{"a": 1}}', "[" * 100_000, "\udcff"], ids=["open", "trailing", "deep", "bytes"])
def test_broken_json_is_a_format_error_naming_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FormatError, match=r"broken\.json"):
        read_json(path)
    with pytest.raises(FormatError, match=r"absent\.json"):
        read_json(tmp_path / "absent.json")


def test_json_and_text_survive_a_round_trip(tmp_path: Path) -> None:
    value = {"name": "駱馬", "numbers": [0, -1.5, None], "nested": {"ok": True}}
    write_json(tmp_path / "deep" / "value.json", value)
    assert read_json(tmp_path / "deep" / "value.json") == value
    write_text(tmp_path / "text", "a\nb\r\n\u2028")
    assert (tmp_path / "text").read_bytes() == "a\nb\r\n\u2028".encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "text"]


def test_free_space_is_that_of_the_nearest_existing_parent(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)


def test_removing_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove_folder(tmp_path / "link")
    remove_folder(tmp_path / "absent")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
