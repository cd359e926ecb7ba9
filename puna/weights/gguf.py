"""GGUF, the container: metadata by key, tensors by name. Read without torch, and believed in nothing before it is checked.

    GGUF | u32 version | u64 tensors | u64 pairs
    pair:    string key | u32 type | value            string: u64 length | UTF-8
    tensor:  string name | u32 axes | u64 size of each, innermost first | u32 type | u64 offset from the data's start
    data:    begins at the next multiple of general.alignment, as does every tensor in it

A count is compared with what is left of the file, at so many bytes an item, before anything is made of it; sums are
Python's, so nothing overflows. Format: docs/formats.md 6; oracle: gguf 0.19.0, whose reader hangs on a 49-byte file.
"""

import math
import mmap
import reprlib
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from puna.errors import FormatError
from puna.weights.tensor_header import TensorHeader

__all__ = ["BLOCK_TYPES", "DEFAULT_ALIGNMENT", "MAGIC", "SCALARS", "BlockType", "GgufFile", "read_gguf"]

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}  # type -> struct's letter
_BOOL, _STRING, _ARRAY = 7, 8, 9
_ALIGNMENT_KEY = "general.alignment"
_MAX_NAME, _MAX_AXES = 64, 4


class BlockType(NamedTuple):
    """A type of tensor: its number in a file, general.file_type of a file of it, numbers and bytes of a block."""

    id: int
    file_type: int
    elements: int
    bytes: int


BLOCK_TYPES = {
    "F32": BlockType(0, 0, 1, 4),
    "F16": BlockType(1, 1, 1, 2),
    "BF16": BlockType(30, 32, 1, 2),
    "Q8_0": BlockType(8, 7, 32, 34),
    "Q4_0": BlockType(2, 2, 32, 18),
    "Q4_K": BlockType(12, 15, 256, 144),
    "Q6_K": BlockType(14, 18, 256, 210),
}
_READ = {block.id: name for name, block in BLOCK_TYPES.items()}
_OTHERS = {  # named in the error, not read
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """A file's metadata as Python values, and its tensors; a tensor's offset is counted from the file's start."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: tuple[TensorHeader, ...]


def read_gguf(path: Path) -> GgufFile:
    """Read a file's header; nothing of its tensors. Errors: FormatError naming the key, the tensor or the part."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size < 24:
            raise FormatError(path, "file", "a GGUF file", f"{status.st_size} bytes of something else")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _read(_Cursor(path, view))
    except OSError as error:
        raise FormatError(path, "file", "a GGUF file", error.strerror or error) from None


def _read(cursor: "_Cursor") -> GgufFile:
    if cursor.take(4, "magic") != MAGIC:
        raise FormatError(cursor.path, "magic", "GGUF", "other bytes")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        hint = "a big-endian file: convert it on the machine that wrote it" if version in (2 << 24, 3 << 24) else ""
        raise FormatError(cursor.path, "version", "2 or 3, little-endian", version, hint)
    n_tensors, n_pairs = cursor.number("Q", "tensors"), cursor.number("Q", "pairs")
    cursor.expect(n_pairs, 8 + 4 + 1, "pairs")
    cursor.expect(n_tensors, 8 + 4 + 4 + 8, "tensors")
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = cursor.name("a key")
        if key in metadata:
            raise FormatError(cursor.path, key, "each key once", "twice")
        metadata[key] = cursor.value(key)
    entries = [_entry(cursor) for _ in range(n_tensors)]
    tensors = _placed(cursor, entries, _alignment(cursor.path, metadata))
    return GgufFile(path=cursor.path, version=version, metadata=metadata, tensors=tensors)


def _entry(cursor: "_Cursor") -> tuple[str, str, tuple[int, ...], int]:
    """Name, type, shape (outermost first) and offset in the data of one tensor."""
    name = cursor.name("a tensor's name")
    if not 0 < len(name.encode()) < _MAX_NAME:
        raise FormatError(cursor.path, name, f"a name of 1 to {_MAX_NAME - 1} bytes", len(name.encode()))
    axes = cursor.number("I", name)
    if not 1 <= axes <= _MAX_AXES:
        raise FormatError(cursor.path, name, f"1 to {_MAX_AXES} axes", axes)
    shape = tuple(cursor.number("Q", name) for _ in range(axes))[::-1]
    kind, offset = cursor.number("I", name), cursor.number("Q", name)
    if kind not in _READ:
        got = _OTHERS.get(kind, f"type {kind}")
        raise FormatError(cursor.path, name, f"one of {', '.join(BLOCK_TYPES)}", got, "quantise it to one of these")
    block = BLOCK_TYPES[_READ[kind]]
    if min(shape) < 1 or shape[-1] % block.elements:
        wanted = f"sizes of at least 1, rows of a multiple of {block.elements}"
        raise FormatError(cursor.path, name, wanted, reprlib.repr(shape))
    return name, _READ[kind], shape, offset


def _placed(
    cursor: "_Cursor", entries: list[tuple[str, str, tuple[int, ...], int]], alignment: int
) -> tuple[TensorHeader, ...]:
    """The tensors in the order of their bytes, which lie within the file and do not overlap."""
    start = -(-cursor.position // alignment) * alignment
    tensors, names, end = [], set(), start
    for name, dtype, shape, offset in sorted(entries, key=lambda entry: entry[3]):
        block, begin = BLOCK_TYPES[dtype], start + offset
        size = math.prod(shape) // block.elements * block.bytes
        if name in names:
            raise FormatError(cursor.path, name, "each tensor once", "twice")
        if offset % alignment or begin < end or begin + size > cursor.size:
            wanted = f"an offset that is a multiple of {alignment}, {size:,} bytes within the file, no overlap"
            raise FormatError(cursor.path, name, wanted, f"offset {offset:,} in {cursor.size - start:,} bytes")
        names.add(name)
        end = begin + size
        tensors.append(
            TensorHeader(name=name, dtype=dtype, shape=shape, bytes=size, file=cursor.path.name, offset=begin)
        )
    return tuple(tensors)


def _alignment(path: Path, metadata: dict[str, Any]) -> int:
    value = metadata.get(_ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if type(value) is not int or not 8 <= value <= 65536 or value & (value - 1):
        raise FormatError(path, _ALIGNMENT_KEY, "a power of two from 8 to 65536", reprlib.repr(value))
    return value


class _Cursor:
    """A place in the file that moves forward; whatever would pass the end is refused."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path, self.size, self.position = path, len(view), 0
        self._view = view

    def expect(self, count: int, item_bytes: int, key: str) -> None:
        """Refuse a count of items that cannot stand in what is left of the file."""
        left = self.size - self.position
        if count * item_bytes > left:
            raise FormatError(
                self.path, key, f"at most {left // item_bytes:,} in the {left:,} bytes that are left", count
            )

    def take(self, count: int, key: str) -> bytes:
        """The next bytes."""
        self.expect(count, 1, key)
        begin, self.position = self.position, self.position + count
        return self._view[begin : self.position]

    def number(self, letter: str, key: str) -> Any:
        """The next number, little-endian, by struct's letter."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), key))[0]

    def text(self, key: str) -> str:
        """The next string."""
        data = self.take(self.number("Q", key), key)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(self.path, key, "UTF-8", error) from None

    def name(self, key: str) -> str:
        """The next string, which can be shown."""
        text = self.text(key)
        if not text.isprintable() or len(text) > 512:
            raise FormatError(self.path, key, "at most 512 printable characters", reprlib.repr(text))
        return text

    def value(self, key: str) -> Any:
        """The next value of a pair, its type before it."""
        kind = self.number("I", key)
        return self._array(key) if kind == _ARRAY else self._plain(kind, key)

    def _plain(self, kind: int, key: str) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind], key)
        if kind == _STRING:
            return self.text(key)
        if kind == _BOOL:
            return self._truth(self.take(1, key), key)[0]
        raise FormatError(self.path, key, "a type of value from 0 to 12, no array within an array", kind)

    def _array(self, key: str) -> list[Any]:
        kind, count = self.number("I", key), self.number("Q", key)
        if kind == _STRING:
            self.expect(count, 8, key)
            return [self.text(key) for _ in range(count)]
        if kind == _BOOL:
            return self._truth(self.take(count, key), key)
        if kind not in SCALARS:
            return [self._plain(kind, key)]
        self.expect(count, struct.calcsize(f"<{SCALARS[kind]}"), key)
        form = f"<{count}{SCALARS[kind]}"
        return list(struct.unpack(form, self.take(struct.calcsize(form), key)))

    def _truth(self, data: bytes, key: str) -> list[bool]:
        if data.translate(None, b"\0\1"):
            raise FormatError(self.path, key, "0 or 1 for a boolean", "another byte")
        return [byte == 1 for byte in data]
