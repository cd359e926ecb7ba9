"""The header of a safetensors file, read within bounds: 8 bytes of length, a JSON object, then the tensors' bytes.

Every tensor's size follows from its type and shape, and together they fill the file: no overlap, no hole, no remainder.
The library that later maps the bytes checks much of this too; here each refusal names the tensor, and nothing is
allocated before the sizes were compared with the file's. Source: the format's description, safetensors 0.8.
"""

import math
import reprlib
from pathlib import Path
from typing import Any

from puna.errors import FormatError
from puna.weights.strict_json import JsonObject, parse_object
from puna.weights.tensor_header import TensorHeader

__all__ = ["read_tensor_headers"]

_TYPES_BY_BYTES = {8: "F64 I64 U64", 4: "F32 I32 U32", 2: "F16 BF16 I16 U16", 1: "F8_E4M3 F8_E5M2 I8 U8 BOOL"}
_BYTES = {dtype: size for size, dtypes in _TYPES_BY_BYTES.items() for dtype in dtypes.split()}
_MAX_HEADER_BYTES = 100_000_000


def read_tensor_headers(path: Path) -> tuple[tuple[TensorHeader, ...], dict[str, str]]:
    """The tensors of a safetensors file in the order of their bytes, and its metadata.

    Errors: FormatError naming the tensor or the part of the file.
    """
    record, data_bytes = _read_header(path)
    metadata = record.values.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())):
        raise FormatError(path, "__metadata__", "texts by name", reprlib.repr(metadata))
    spans = sorted((*_span(record.child(name)), name) for name in record.values)
    position = 0
    for begin, end, name in spans:
        if begin != position:
            raise FormatError(path, name, f"bytes that begin at {position}, where the last tensor ends", begin)
        position = end
    if position != data_bytes:
        raise FormatError(path, "file", f"{position:,} bytes of tensors, as its header says", f"{data_bytes:,}")
    start = path.stat().st_size - data_bytes
    headers = (_tensor(path, name, record.values[name], end - begin, start + begin) for begin, end, name in spans)
    return tuple(headers), metadata


def _read_header(path: Path) -> tuple[JsonObject, int]:
    """The header's JSON and how many bytes of tensors follow it."""
    if not path.is_file():
        raise FormatError(path, "file", "a safetensors file", "nothing")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
                raise FormatError(
                    path, "header length", f"at most {_MAX_HEADER_BYTES:,} and within the file's {size:,} bytes", length
                )
            return parse_object(path, file.read(length)), size - 8 - length
    except OSError as error:
        raise FormatError(path, "file", "a file that can be read", error.strerror) from None


def _span(tensor: JsonObject) -> tuple[int, int]:
    """Begin and end of a tensor's bytes, which its type and shape must fill exactly."""
    tensor.only("dtype", "shape", "data_offsets")
    dtype = tensor.one_of("dtype", _BYTES, expected=f"one of {', '.join(_BYTES)}")
    shape, offsets = tensor.items("shape"), tensor.items("data_offsets")
    if not _are_sizes(shape):
        raise tensor.refuse("shape", "whole numbers of at least 0")
    if not (_are_sizes(offsets) and len(offsets) == 2):
        raise tensor.refuse("data_offsets", "a begin and an end")
    begin, end = offsets
    if end - begin != _BYTES[dtype] * math.prod(shape):
        raise tensor.refuse("data_offsets", f"{_BYTES[dtype]} x the product of {reprlib.repr(shape)} bytes")
    return begin, end


def _are_sizes(values: list[Any]) -> bool:
    return len(values) <= 8 and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _tensor(path: Path, name: str, record: dict[str, Any], size_bytes: int, offset: int) -> TensorHeader:
    return TensorHeader(
        name=name,
        dtype=record["dtype"],
        shape=tuple(record["shape"]),
        bytes=size_bytes,
        file=path.name,
        offset=offset,
    )
