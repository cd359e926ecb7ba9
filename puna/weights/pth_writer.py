"""PyTorch's .pth written as its tensors arrive: an uncompressed zip, its pickle spelled out, memory for one tensor.

    {name: torch._utils._rebuild_tensor_v2(storage N, 0, shape, strides, False, OrderedDict()), ...}

A storage is ('storage', torch.FloatStorage, 'N', 'cpu', elements), and its bytes are the entry `archive/data/N`, which
begins at a multiple of 64 so that it can be mapped. Dates are fixed: the same tensors give the same file.
Source: torch 2.13, torch/serialization.py; the opcodes are those of Python's pickletools.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from puna.weights.tensors import TensorSpec, spec_bytes

__all__ = ["write_pth"]

_STORAGES = {"F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "I32": "Int",
             "I16": "Short", "I8": "Char", "U8": "Byte", "BOOL": "Bool"}  # fmt: skip
_ALIGNMENT = 64
_HEADER_BYTES = 30 + 20 + 4  # before an entry's bytes, beside its name: local header, zip64 field, padding's field
_EMPTY, _FALSE, _REDUCE, _PERSISTENT = b")", b"\x89", b"R", b"Q"


def write_pth(staged: Path, specs: Sequence[TensorSpec], chunks: Iterable[memoryview | bytes]) -> None:
    """Write a file in a staged place that torch.load reads as a plain dict of tensors, in this order.

    Args:   specs: name, type and shape of each tensor. chunks: the bytes of each, little-endian.
    """
    with staged.open("wb") as file, ZipFile(file, "w") as staged_zip:

        def add(name: str, data: memoryview | bytes) -> None:
            entry = ZipInfo(f"archive/{name}")
            padding = -(file.tell() + _HEADER_BYTES + len(entry.filename)) % _ALIGNMENT
            entry.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
            with staged_zip.open(entry, "w", force_zip64=True) as target:
                target.write(data)

        add("data.pkl", _pickle(specs))
        add("byteorder", b"little")
        arriving = iter(chunks)
        for number, spec in enumerate(specs):
            add(f"data/{number}", _next(spec, arriving))  # kept by no name here when the next one is made
        if next(arriving, None) is not None:
            raise ValueError(f"{len(specs)} tensors were announced, more arrived")
        add("version", b"3\n")


def _next(spec: TensorSpec, chunks: Iterator[memoryview | bytes]) -> memoryview | bytes:
    chunk = next(chunks, b"")
    if len(chunk) != spec_bytes(spec):
        raise ValueError(f"{spec[0]}: {spec_bytes(spec)} bytes were announced, {len(chunk)} arrived")
    return chunk


def _pickle(specs: Sequence[TensorSpec]) -> bytes:
    """The dict, in protocol 2."""
    items = (_text(name) + _tensor(number, dtype, shape) for number, (name, dtype, shape) in enumerate(specs))
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _tensor(number: int, dtype: str, shape: tuple[int, ...]) -> bytes:
    storage = _tuple(
        _text("storage"), _global("torch", f"{_STORAGES[dtype]}Storage"), _text(str(number)), _text("cpu"),
        _integer(math.prod(shape)),
    )  # fmt: skip
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    hooks = _global("collections", "OrderedDict") + _EMPTY + _REDUCE
    arguments = _tuple(
        storage + _PERSISTENT, _integer(0), _tuple(*map(_integer, shape)), _tuple(*map(_integer, strides)), _FALSE, hooks
    )  # fmt: skip
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + _REDUCE


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)
