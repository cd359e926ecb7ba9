"""Hostile .pth files: nothing runs, nothing hangs, nothing grows, and every refusal is a FormatError."""

import io
import os
import pickle
import random
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import pytest
import torch

from puna.child import Child
from puna.errors import FormatError
from puna.weights import pth
from puna.weights.pth import open_pth, place_tensors, read_pth_headers
from puna.weights.pth_worker import list_tensors
from puna.weights.pth_writer import _pickle
from puna.weights.tensor_header import TensorHeader
from tests.mutations import MUTATIONS, mutate

SENTINEL = "sentinel"


class Call:
    """An object whose pickle is a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.reduced


def zipped(entries: dict[str, bytes], method: int = ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(ZipInfo(name), data, method)
    return buffer.getvalue()


def around(data_pkl: bytes, **more: bytes) -> bytes:
    """The .pth around a pickle."""
    return zipped({"archive/data.pkl": data_pkl, "archive/data/0": bytes(64), "archive/version": b"3\n"} | more)


def read_here(path: Path) -> tuple[TensorHeader, ...]:
    """`read_pth_headers` of one file, without a child."""
    return place_tensors(open_pth(path), list_tensors(str(path)))


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def pickled(*call: object) -> bytes:
    return around(pickle.dumps({"a": Call(*call)}, 2, fix_imports=False))


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return buffer.getvalue()


TOUCH = f"touch {SENTINEL}"
OPEN = f"open({SENTINEL!r}, 'w')"
GADGETS: dict[str, Callable[[], bytes]] = {
    "os.system": lambda: around(f"cos\nsystem\n(X{TOUCH}".encode().replace(b"X", b"X" + struct.pack("<I", len(TOUCH))) + b"tR."),
    "posix.system": lambda: pickled(os.system, TOUCH),
    "subprocess": lambda: pickled(subprocess.Popen, ["touch", SENTINEL]),
    "eval": lambda: pickled(eval, OPEN),
    "import": lambda: pickled(__import__, SENTINEL),
    "a payload before a broken tail": lambda: around(pickle.dumps(Call(os.system, TOUCH), 2)[:-1] + b"\xff\xff"),
    "a numpy object": lambda: around(pickle.dumps({"a": np.array([Call(os.system, TOUCH)], dtype=object)}, 2)),
    "a zip in a zip": lambda: zipped({"archive/data.pkl": pickled(os.system, TOUCH), "archive/version": b"3\n"}),
    "TorchScript": lambda: around(b"\x80\x02}.", **{"archive/constants.pkl": pickle.dumps(Call(os.system, TOUCH), 2)}),
    ".pt2": lambda: zipped({"x/archive_format": b"pt2", "x/models/model.json": b"{}", "x/data/weights/0": b""}),
    "DCP metadata": lambda: pickle.dumps(Call(os.system, TOUCH), 2),
    "16 MB deflated to 16 kB": lambda: zipped(
        {"archive/data.pkl": pickle.dumps({}, 2), "archive/data/0": bytes(16 << 20), "archive/version": b"3\n"}, ZIP_DEFLATED
    ),
    "TAR": tar,
    "7z": lambda: b"7z\xbc\xaf\x27\x1c" + pickled(os.system, TOUCH),
    "another file after the end": lambda: saved({"a": torch.ones(2)}) + pickle.dumps(Call(os.system, TOUCH), 2),
    "big-endian": lambda: around(b"\x80\x02}.", **{"archive/byteorder": b"big"}),
    "no pickle": lambda: zipped({"archive/version": b"3\n"}),
    "a directory entry": lambda: around(b"\x80\x02}.", **{"archive/data/": b""}),
    "a list without end": lambda: around(b"\x80\x02" + b"(" * 1_000_000),
    "bytes of an exabyte": lambda: around(b"\x80\x02cbuiltins\nbytearray\n(\x8a\x08" + struct.pack("<q", 1 << 60) + b"tR."),
    "a storage of an exabyte": lambda: around(_pickle([("a", "F32", (1 << 58,))])),
    "an alignment of 0": lambda: around(
        _pickle([("a", "F32", (16,)), ("b", "F32", (16,))]),
        **{"archive/.format_version": b"1", "archive/.storage_alignment": b"0", "archive/data/1": bytes(64)},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child("puna.weights.pth_worker", memory_bytes=pth._MEMORY_BYTES, cpu_seconds=60) as child:
        yield child


@pytest.fixture
def one_child(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all tests of this file ask one child, which starts in 2 seconds."""
    monkeypatch.setattr(pth, "Child", lambda *_, **__: nullcontext(child))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "consolidated.00.pth"


@pytest.mark.parametrize("name", GADGETS)
def test_a_gadget_is_refused_and_does_nothing(
    path: Path, one_child: None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    path.write_bytes(GADGETS[name]())
    with pytest.raises(FormatError) as error:
        read_pth_headers([path])
    assert "weights_only" not in error.value.message
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert not (Path("/") / SENTINEL).exists()  # the child's folder


def test_the_gadgets_would_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the files hold is no mock: an unlimited unpickler runs it."""
    monkeypatch.chdir(path.parent)
    for name in ("os.system", "posix.system", "subprocess", "eval"):
        path.write_bytes(GADGETS[name]())
        with ZipFile(path) as archive, archive.open("archive/data.pkl") as file:
            done = pickle.load(file)  # noqa: S301
        if name == "subprocess":
            done["a"].wait()
        assert Path(SENTINEL).exists()
        Path(SENTINEL).unlink()


GOOD = saved({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)})
with ZipFile(io.BytesIO(GOOD)) as _archive:
    ENTRIES = {name: _archive.read(name) for name in _archive.namelist() if not name.endswith(".format_version")}
END, LOCATOR, ZIP64 = len(GOOD) - 22, len(GOOD) - 42, len(GOOD) - 98
DIRECTORY = struct.unpack_from("<I", GOOD, END + 16)[0]
DATA_0 = GOOD.index(b"PK\1\2", GOOD.index(b"archive/byteorder", DIRECTORY))  # its entry in the directory


def changed(*patches: tuple[int, str, int]) -> bytes:
    data = bytearray(GOOD)
    for at, kind, value in patches:
        struct.pack_into(f"<{kind}", data, at, value)
    return bytes(data)


def widened(at: int) -> bytes:
    """With the place of data/0 in a zip64 field of the directory."""
    size, name_end = END - 76 - DIRECTORY, DATA_0 + 46 + len("archive/data/0")
    data = changed(
        (DATA_0 + 30, "H", 12), (DATA_0 + 42, "I", 0xFFFFFFFF), (LOCATOR + 8, "Q", ZIP64 + 12),
        (END + 12, "I", size + 12), (ZIP64 + 40, "Q", size + 12),
    )  # fmt: skip
    return data[:name_end] + struct.pack("<2HQ", 1, 8, at) + data[name_end:]


LIES = {
    "a directory of an exabyte": changed((END + 12, "I", 0xFFFFFFFF), (ZIP64 + 40, "Q", 1 << 60)),
    "a directory beyond the end": changed((END + 16, "I", 0xFFFFFFFF), (ZIP64 + 48, "Q", 1 << 62)),
    "records that differ": changed((ZIP64 + 40, "Q", 1)),
    "a locator that points elsewhere": changed((LOCATOR + 8, "Q", 0)),
    "more entries": changed((END + 8, "H", 9), (END + 10, "H", 9), (ZIP64 + 24, "Q", 9), (ZIP64 + 32, "Q", 9)),
    "fewer entries": changed((END + 8, "H", 7), (END + 10, "H", 7), (ZIP64 + 24, "Q", 7), (ZIP64 + 32, "Q", 7)),
    "2^63 entries": changed((END + 8, "I", 0xFFFFFFFF), (ZIP64 + 24, "Q", 1 << 63), (ZIP64 + 32, "Q", 1 << 63)),
    "a second disk": changed((END + 4, "H", 1)),
    "a comment": changed((END + 20, "H", 1)) + b"x",
    "encrypted": changed((DATA_0 + 8, "H", 0x809)),
    "deflated": changed((DATA_0 + 10, "H", 8)),
    "a size beyond the file": changed((DATA_0 + 20, "I", 1 << 30), (DATA_0 + 24, "I", 1 << 30)),
    "a size over the next entry": changed((DATA_0 + 20, "I", 200), (DATA_0 + 24, "I", 200)),
    "a packed size of its own": changed((DATA_0 + 20, "I", 20)),
    "a 64-bit size that is missing": changed((DATA_0 + 20, "I", 0xFFFFFFFF), (DATA_0 + 24, "I", 0xFFFFFFFF)),
    "an entry at another's place": changed((DATA_0 + 42, "I", 0)),
    "an entry beyond the file": changed((DATA_0 + 42, "I", 1 << 30)),
    "an entry beyond 2^63": widened((1 << 64) - 1),
    "an entry beyond the file, in 64 bits": widened(1 << 40),
    "bytes before the first entry": b"\0" + GOOD,
    "bytes after the end": GOOD + b"\0",
    "a name of its own in the directory": GOOD[:DATA_0] + GOOD[DATA_0:].replace(b"data/0", b"data/7"),
    "a name twice": GOOD.replace(b"data/1", b"data/0"),
    "a name that climbs": GOOD.replace(b"archive/data/0", b"archive/../../"),
    "an absolute name": GOOD.replace(b"archive/", b"/rchive/"),
    "a folder that climbs": GOOD.replace(b"archive/", b".....//."),
    "a name in other letters": GOOD.replace(b"data/1", b"DATA/1"),
    "a name that cannot be shown": GOOD.replace(b"data/1", b"dat\x1b/1"),
    "a name beyond ASCII": GOOD.replace(b"data/1", "dát/1".encode()),
    "two folders": GOOD.replace(b"archive/version", b"brchive/version"),
    "an unknown entry": GOOD.replace(b"data/1", b"data/x"),
    "a missing storage": GOOD.replace(b"data/1", b"data/2"),
    "nothing": b"",
    "an empty zip": GOOD[END:][:4] + bytes(18),
    "zeros": bytes(1000),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_zip_that_lies_is_refused_at_once(path: Path, lie: str) -> None:
    path.write_bytes(GOOD)
    assert len(read_here(path)) == 2
    assert LIES[lie] != GOOD
    path.write_bytes(LIES[lie])
    started = time.process_time()
    with pytest.raises(FormatError):
        read_here(path)
    assert time.process_time() - started < 0.5


def test_a_place_in_64_bits_is_read(path: Path) -> None:
    path.write_bytes(GOOD)
    before = read_here(path)
    path.write_bytes(widened(struct.unpack_from("<I", GOOD, DATA_0 + 42)[0]))
    assert read_here(path) == before


def test_a_file_cut_at_any_byte_is_refused(path: Path) -> None:
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(FormatError):
            open_pth(path)


@pytest.mark.parametrize("kind", ["absent", "folder", "fifo", "loop", "/dev/zero", "sparse", "sparse with an end"])
def test_what_is_no_such_file_is_refused_at_once(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("loop", "/dev/zero"):
        path.symlink_to(path if kind == "loop" else kind)
    elif kind != "absent":
        with path.open("wb") as file:
            file.truncate(1 << 40)
            file.seek(0, os.SEEK_END)
            file.write(changed((ZIP64 + 40, "Q", 1 << 39), (END + 12, "I", 0xFFFFFFFF))[ZIP64:] * (kind != "sparse"))
    started = time.perf_counter()
    with pytest.raises(FormatError):
        read_pth_headers([path])
    assert time.perf_counter() - started < 2


def check_inside(path: Path, headers: tuple[TensorHeader, ...]) -> None:
    spans = [span for name, span in open_pth(path).spans.items() if name.startswith("data/")]
    for each in headers:
        assert any(begin <= each.offset and each.offset + each.bytes <= end for begin, end in spans)


def mutated(rng: random.Random) -> bytes:
    """The file, or only the pickle in it, which the sums of a zip then no longer protect."""
    if rng.random() < 0.5:
        return mutate(GOOD, rng)
    return zipped(ENTRIES | {"archive/data.pkl": mutate(ENTRIES["archive/data.pkl"], rng)})


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("way", ["in this process", "through the child"])
def test_mutations_are_refused_or_stay_inside_the_archive(path: Path, one_child: None, way: str) -> None:
    path.write_bytes(zipped(ENTRIES))
    assert len(read_pth_headers([path])[0]) == 2  # the child starts before the clock does
    rng, read, slowest, count = random.Random(0), 0, 0.0, MUTATIONS if way == "in this process" else 12
    reader = read_here if way == "in this process" else lambda path: read_pth_headers([path])[0]
    clock = time.process_time if way == "in this process" else time.perf_counter
    for _ in range(count):
        path.write_bytes(mutated(rng))
        started = clock()
        try:
            check_inside(path, reader(path))
            read += 1
        except FormatError:
            pass
        slowest = max(slowest, clock() - started)
    assert slowest < 1
    assert read < count
    assert read > 0 or way == "through the child"
