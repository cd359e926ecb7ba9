"""GGUF files that lie: refused at once, whatever they claim, and never with another exception."""

import random
import struct
import time

import pytest
import torch

from puna.errors import FormatError
from puna.weights.gguf import GgufFile, read_gguf
from puna.weights.gguf_writer import write_gguf
from puna.weights.tensors import as_bytes
from tests.mutations import MUTATIONS, mutate

HUGE = (2**31, 2**32, 2**53, 2**60, 2**63, 2**64 - 1)
_U32, _STRING, _ARRAY = 4, 8, 9


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes = b"a", sizes=(4,), kind: int = 0, offset: int = 0, axes: int | None = None) -> bytes:
    axes = len(sizes) if axes is None else axes
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", axes, *sizes, kind, offset)


def build(pairs=(), tensors=(), data: int = 64, counts=None, version: int = 3) -> bytes:
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs) + b"".join((*pairs, *tensors))
    return header + bytes(-len(header) % 32) + bytes(data)


GOOD = (pair(b"general.architecture", _STRING, text(b"llama")), pair(b"n", _U32, struct.pack("<I", 3)))
LIES = {
    **{f"{count} pairs": build(GOOD, counts=(0, count)) for count in HUGE},
    **{f"{count} tensors": build(GOOD, counts=(count, 2)) for count in HUGE},
    **{f"a key of {count} bytes": build([struct.pack("<Q", count) + b"k"]) for count in HUGE},
    **{f"a text of {count}": build([pair(b"k", _STRING, struct.pack("<Q", count))]) for count in HUGE},
    **{
        f"an array of {count} of type {kind}": build([pair(b"k", _ARRAY, struct.pack("<IQ", kind, count))])
        for count in HUGE
        for kind in range(13)
    },
    **{f"a name of {count}": build((), [struct.pack("<Q", count) + b"k"]) for count in HUGE},
    **{f"a size of {size}": build((), [tensor(sizes=(size,))]) for size in HUGE},
    **{f"a product of {size}": build((), [tensor(sizes=(size, size, 4))]) for size in HUGE},
    **{f"an offset of {offset}": build((), [tensor(offset=offset)]) for offset in (*HUGE[:-1], 1, 8, 33, 64, 96, 2**20)},
    **{f"an offset of {offset} of nearly 2^64": build((), [tensor(offset=2**64 - offset)]) for offset in (1, 8, 32, 64)},
    **{f"{axes} axes": build((), [tensor(axes=axes)]) for axes in (0, 5, 9, 2**31, 2**32 - 1)},
    **{f"alignment {a}": build([pair(b"general.alignment", _U32, struct.pack("<I", a))]) for a in
       (0, 1, 3, 4, 7, 24, 33, 65537, 2**17, 2**31)},
    **{f"value type {kind}": build([pair(b"k", kind, bytes(64))]) for kind in (13, 14, 99, 2**31, 2**32 - 1)},
    **{f"tensor type {kind}": build((), [tensor(kind=kind)]) for kind in (3, 4, 5, 13, 24, 28, 31, 99, 2**32 - 1)},
    **{f"version {version}": build(GOOD, version=version) for version in (0, 1, 4, 2 << 24, 3 << 24, 2**32 - 1)},
    "an array in an array": build([pair(b"k", _ARRAY, struct.pack("<IQ", _ARRAY, 1) + struct.pack("<IQ", 4, 1) + bytes(4))]),
    "alignment as text": build([pair(b"general.alignment", _STRING, text(b"32"))]),
    "a boolean of 2": build([pair(b"k", 7, b"\2")]),
    "booleans of 2": build([pair(b"k", _ARRAY, struct.pack("<IQ", 7, 2) + b"\1\2")]),
    "a key twice": build([GOOD[0], GOOD[0]]),
    "a tensor twice": build((), [tensor(), tensor(offset=32)]),
    "tensors that overlap": build((), [tensor(b"a", (16,)), tensor(b"b", (4,), offset=32)]),
    "two tensors in one place": build((), [tensor(b"a"), tensor(b"b")]),
    "a size of 0": build((), [tensor(sizes=(0,))]),
    "a row that is no whole block": build((), [tensor(sizes=(33,), kind=8)]),
    "a name of 64 bytes": build((), [tensor(b"n" * 64)]),
    "an empty name": build((), [tensor(b"")]),
    "a name that cannot be shown": build((), [tensor(b"a\0b")]),
    "a name that is no UTF-8": build((), [tensor(b"\xff\xfe")]),
    "a key that is no UTF-8": build([pair(b"\xff", _U32, bytes(4))]),
    "a text that is no UTF-8": build([pair(b"k", _STRING, text(b"\xff"))]),
    "another magic": b"GGML" + build(GOOD)[4:],
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "nothing": b"",
    "zeros": bytes(1000),
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.gguf"


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_at_once(path, lie):
    path.write_bytes(LIES[lie])
    started = time.process_time()
    with pytest.raises(FormatError):
        read_gguf(path)
    assert time.process_time() - started < 0.5  # of this process: what else the machine does is no matter


def test_a_file_cut_at_any_byte_is_refused(path):
    whole = build(GOOD, [tensor(b"a.weight", (4, 2))], data=32)
    path.write_bytes(whole)
    assert read_gguf(path).tensors[0].shape == (2, 4)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_gguf(path)


@pytest.mark.parametrize("make", ["mkdir", "fifo", "absent", "loop"])
def test_what_is_no_file_is_refused(path, make):
    import os

    if make == "mkdir":
        path.mkdir()
    elif make == "loop":
        path.symlink_to(path)
    elif make == "fifo":
        os.mkfifo(path)
    with pytest.raises(FormatError):
        read_gguf(path)


def check_inside(file: GgufFile) -> None:
    size = file.path.stat().st_size
    ends = [0]
    for each in file.tensors:
        assert ends[-1] <= each.offset
        assert each.offset + each.bytes <= size
        ends.append(each.offset + each.bytes)


def test_mutations_are_refused_or_stay_inside_the_file(path):
    metadata = {"general.architecture": "llama", "names": ["a", "b"], "scores": [0.5], "yes": True, "n": 3}
    x = torch.arange(64, dtype=torch.float32)
    specs = [("a.weight", "F32", (2, 32)), ("b", "F32", (4,)), ("q", "Q8_0", (1, 32))]
    write_gguf(path, metadata, specs, [as_bytes(x), as_bytes(x[:4]), memoryview(bytes(34))])
    original, rng, read = path.read_bytes(), random.Random(0), 0
    header = len(original) - 400
    slowest = 0.0
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(original[:header], rng) + original[header:])
        started = time.process_time()
        try:
            check_inside(read_gguf(path))
            read += 1
        except FormatError:
            pass
        slowest = max(slowest, time.process_time() - started)
    assert slowest < 1
    assert 0 < read < MUTATIONS
