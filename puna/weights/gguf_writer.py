"""GGUF written as its tensors arrive: version 3, little-endian, aligned to 32 bytes; memory holds one tensor.

Python's types choose the file's: bool, str, int (u32, u64 above it), float (f32), and lists of strings, booleans, i32 or
f32, as llama.cpp expects its keys. Format: docs/formats.md 6; the layout stands in weights/gguf.py.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from puna.errors import UsageError
from puna.weights.gguf import BLOCK_TYPES, DEFAULT_ALIGNMENT, MAGIC

__all__ = ["write_gguf"]

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 4, 5, 6, 7, 8, 9, 10


def write_gguf(
    staged: Path,
    metadata: Mapping[str, object],
    specs: Sequence[tuple[str, str, tuple[int, ...]]],
    chunks: Iterable[memoryview],
) -> None:
    """Write a file in a staged place.

    Args:   specs: (name, type, shape as torch has it) of each tensor. chunks: the bytes of each, in that order.
    Errors: UsageError: a number in the metadata that the format cannot hold.
    """
    with staged.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", 3, len(specs), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _pair_value(key, value))
        offset = 0
        for name, dtype, shape in specs:
            file.write(
                _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], BLOCK_TYPES[dtype].id, offset)
            )
            offset += _padded(_bytes(dtype, shape))
        file.write(bytes(-file.tell() % DEFAULT_ALIGNMENT))
        for (name, dtype, shape), chunk in zip(specs, chunks, strict=True):
            if len(chunk) != _bytes(dtype, shape):
                raise ValueError(f"{name}: {_bytes(dtype, shape)} bytes were announced, {len(chunk)} arrived")
            file.write(chunk)
            file.write(bytes(_padded(len(chunk)) - len(chunk)))


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    block = BLOCK_TYPES[dtype]
    return math.prod(shape) // block.elements * block.bytes


def _padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pair_value(key: str, value: object) -> bytes:
    """The type and the value. Errors: UsageError."""
    try:
        if not isinstance(value, list):
            kind = _kind(key, value)
            return struct.pack("<I", kind) + _packed(kind, [value])
        kind = _kind(key, value[0]) if value else _STRING
        kind = _I32 if kind == _U32 else kind
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + _packed(kind, value)
    except (struct.error, OverflowError) as error:
        raise UsageError(f"{key}: GGUF cannot hold this value: {error}", "convert to hf instead") from None


def _kind(key: str, value: object) -> int:
    match value:
        case bool():
            return _BOOL
        case str():
            return _STRING
        case int():
            return _U32 if value < 1 << 32 else _U64
        case float() if math.isfinite(value):
            return _F32
    raise UsageError(
        f"{key}: GGUF cannot hold {value!r}", "a text, a whole or a finite number, a boolean or a list of one"
    )


def _packed(kind: int, values: Sequence[object]) -> bytes:
    if kind == _STRING:
        return b"".join(_text(str(value)) for value in values)
    letter = {_U32: "I", _U64: "Q", _I32: "i", _F32: "f", _BOOL: "?"}[kind]
    return struct.pack(f"<{len(values)}{letter}", *values)
