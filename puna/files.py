"""Durable writing: whatever is on disk is whole, and says so itself.

A file is written beside its place, flushed, fsynced and renamed. A folder is filled under a `.tmp-<pid>` name; the last
file written is MANIFEST.json with the size and SHA-256 of every other one; then the folder is renamed into place. A
crash leaves the old state or the new one, never a mixture. What takes long is filled under `.building`, outlives a kill
and goes on there. Protocol: docs/reliability.md.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from puna.errors import CheckpointMismatch, DiskFull, FormatError, RunLocked

__all__ = [
    "JOURNAL",
    "MANIFEST",
    "REPLACED",
    "AppendedFile",
    "LineLog",
    "building_folder",
    "free_bytes",
    "is_sealed",
    "lock_folder",
    "read_json",
    "remove_folder",
    "resumable_folder",
    "sha256_file",
    "staged_file",
    "staged_folder",
    "sweep_stale",
    "verify_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

REPLACED = ".puna-old"  # what a new folder takes the place of, until it has
MANIFEST = "MANIFEST.json"
JOURNAL = "progress.json"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EFBIG}


def write_text(path: Path, text: str) -> None:
    """Write a whole file durably: temporary name, fsync, rename."""
    with staged_file(path) as staged, staged.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file durably: temporary name, fsync, rename."""
    with staged_file(path) as staged, staged.open("wb") as file:
        file.write(data)


@contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """Write a file under a temporary name, bring it to the disk, rename it to `final`.

    Errors: DiskFull; on any error the temporary file is removed and what stood at `final` stays.
    """
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    with _disk_errors(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _fsync_file(temporary)
            temporary.replace(final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync_folder(final.parent)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, durably."""
    write_text(path, _json_text(value))


def read_json(path: Path) -> Any:
    """Read a JSON file; FormatError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(path, "file", "a JSON file", "nothing") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "file", "JSON", error) from None


@contextmanager
def staged_folder(final: Path, record: Mapping[str, object] | None = None) -> Iterator[Path]:
    """Fill a folder under a temporary name, seal it with a manifest, rename it to `final`.

    Args:    record: further keys of the manifest (step, recipe, ...).
    Errors:  DiskFull; on any error the temporary folder is removed and what stood at `final` stays.
    """
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    with _disk_errors(final.parent):
        remove_folder(temporary)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            _seal(temporary, record or {})
            _move_into_place(temporary, final)
        except BaseException:
            remove_folder(temporary)
            raise


def building_folder(final: Path) -> Path:
    """Where `resumable_folder` works on `final`."""
    return final.with_name(f"{final.name}.building")


@contextmanager
def resumable_folder(final: Path) -> Iterator[tuple[Path, Path]]:
    """Fill a folder that outlives a kill, alone; at the end it is sealed like a staged one and renamed to `final`.

    Gives (where to fill, the journal beside it). The caller writes the journal when what it tells of is on the disk, and
    on entering removes whatever the journal does not tell of. Before the first journal an error leaves nothing.
    Errors: DiskFull, RunLocked.
    """
    work = building_folder(final)
    staged, journal = work / "staged", work / JOURNAL
    with lock_folder(work), _disk_errors(final.parent):
        try:
            staged.mkdir(exist_ok=True)
            yield staged, journal
            _seal(staged, {})
            _move_into_place(staged, final)
        except BaseException:
            if not journal.exists():
                remove_folder(work)
            raise
        remove_folder(work)


def verify_folder(folder: Path) -> dict[str, Any]:
    """Check every file against the folder's manifest; return the manifest.

    Errors: CheckpointMismatch naming the first file that is missing, extra or changed.
    """
    manifest = _read_manifest(folder)
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        if path.stat().st_size != size or sha256_file(path) != digest:
            raise CheckpointMismatch(
                f"{path}: changed since it was written", "restore the file or use another checkpoint"
            )
    return manifest


def is_sealed(folder: Path) -> bool:
    """Whether puna wrote the folder and nothing was put into it or taken out since; contents are not read."""
    try:
        _read_manifest(folder)
    except (CheckpointMismatch, FormatError, OSError, UnicodeDecodeError):
        return False
    return True


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, whole in itself, of exactly the files that are there. Errors: CheckpointMismatch, FormatError."""
    manifest = read_json(folder / MANIFEST)
    if (folder / MANIFEST).read_text(encoding="utf-8") != _json_text(manifest):
        raise CheckpointMismatch(f"{folder / MANIFEST}: the manifest was changed after it was written")
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("schema") != 1:
        raise CheckpointMismatch(
            f"{folder / MANIFEST}: expected schema 1 with files", "this folder was not written by puna"
        )
    if manifest.get("sha256") != _manifest_hash(manifest):
        raise CheckpointMismatch(f"{folder / MANIFEST}: the manifest was changed after it was written")
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    for name in sorted(present ^ files.keys()):
        raise CheckpointMismatch(f"{folder / name}: {'not in the manifest' if name in present else 'missing'}")
    return manifest


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone. Errors: RunLocked, naming the other process."""
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunLocked(
                f"{folder}: in use by process {file.read().strip() or '?'}", "wait, or choose another --out"
            ) from None
        with suppress(OSError):  # on a full disk the lock holds all the same, and names nobody
            file.truncate(0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield


class AppendedFile:
    """An append-only file, cut back to `offset` bytes on opening so that a resumed run repeats nothing."""

    def __init__(self, path: Path, offset: int = 0, *, buffering: int = -1) -> None:
        self._path = path
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=buffering)
            self._file.truncate(min(offset, path.stat().st_size))

    def write(self, data: bytes) -> None:
        """Write at the end; it may stay in a buffer until `sync` or `close`."""
        with _disk_errors(self._path):
            self._file.write(data)

    def cut_back(self, offset: int) -> None:
        """Take back what stands behind `offset` bytes."""
        with _disk_errors(self._path):
            self._file.flush()
            self._file.truncate(offset)

    def sync(self) -> int:
        """Bring what was written to the disk; return the file's length in bytes."""
        with _disk_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._path.stat().st_size

    def close(self) -> None:
        """Close the file."""
        with _disk_errors(self._path):
            self._file.close()


class LineLog(AppendedFile):
    """An append-only file of JSON lines; those for which the disk has no room wait, and `sync` says so."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        super().__init__(path, offset, buffering=0)
        self._waiting = bytearray()

    def append(self, event: Mapping[str, object]) -> None:
        """Write one event as a line, now or when there is room again."""
        self._waiting += json.dumps(event, ensure_ascii=False).encode() + b"\n"
        with suppress(DiskFull):
            self._write_waiting()

    def cut_back(self, offset: int, keep: Callable[[dict[str, Any]], bool] = lambda _: False) -> None:
        """Take back the events behind `offset` bytes, which a `sync` returned, but for those to keep."""
        with _disk_errors(self._path), self._path.open("rb") as file:
            file.seek(offset)
            lines = (file.read() + self._waiting).splitlines()
        self._waiting.clear()
        super().cut_back(offset)
        for event in filter(keep, map(json.loads, lines)):
            self.append(event)

    def sync(self) -> int:
        """Bring what was written to the disk; return the file's length in bytes. Errors: DiskFull."""
        self._write_waiting()
        return super().sync()

    def close(self) -> None:
        """Close the file; a resume cuts back what a full disk leaves out here."""
        with suppress(DiskFull):
            self._write_waiting()
        super().close()

    def _write_waiting(self) -> None:
        with _disk_errors(self._path):
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]


def sweep_stale(folder: Path) -> None:
    """Remove what a killed process left unfinished directly under `folder`; call it under the lock."""
    if not folder.is_dir():
        return
    for path in folder.glob("*.tmp-*"):
        remove_folder(path)
    for path in folder.glob(f"*{REPLACED}"):
        final = path.with_suffix("")
        if final.exists():
            remove_folder(path)
        else:
            path.rename(final)


def remove_folder(path: Path) -> None:
    """Remove a folder or a file if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Free bytes on the file system that holds `path` (or its nearest existing parent)."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(folder: Path, record: Mapping[str, object]) -> None:
    names = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in names:
        _fsync_file(path)
    files = {str(path.relative_to(folder)): [path.stat().st_size, sha256_file(path)] for path in names}
    manifest = {"schema": 1, **record, "files": files}
    write_json(folder / MANIFEST, {**manifest, "sha256": _manifest_hash(manifest)})


def _json_text(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _manifest_hash(manifest: Mapping[str, object]) -> str:
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _move_into_place(temporary: Path, final: Path) -> None:
    old = final.with_name(final.name + REPLACED)
    if final.exists():
        remove_folder(old)
        final.rename(old)
    try:
        temporary.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise
    _fsync_folder(final.parent)
    remove_folder(old)


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise DiskFull(
            f"{error.filename or place}: {error.strerror}; {free_bytes(place):,} bytes are free",
            "free some space or choose another --out; what was saved before is untouched",
        ) from error
