"""PyTorch's .pth files: where each tensor's bytes stand, found without running what the file says, and without torch here.

A .pth is an uncompressed zip: `data.pkl`, a pickle that names the tensors, and `data/N`, the bytes of storage N. This
process checks the zip; a limited child (pth_worker.py) has torch.load(weights_only=True) read the pickle, and no more than
that; what the child says is compared with the zip. Refused: what is not a flat dict of dense, contiguous tensors.
Format: docs/formats.md 3; bounds: docs/reliability.md 4.
"""

import math
import re
import reprlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from puna.child import Child, ChildFailed
from puna.errors import FormatError
from puna.weights.stored_zip import StoredZip, read_stored_zip
from puna.weights.tensor_header import TensorHeader

__all__ = ["open_pth", "place_tensors", "read_pth_headers"]

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_RECORDS = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
_STORAGE = re.compile(r"data/[0-9]+")
_MAX_PICKLE_BYTES = 64 << 20
_MAX_NAME = 512  # characters
_MAX_AXES = 8
_MEMORY_BYTES = 512 << 20  # for the pickle's objects; the child reads no tensor
_SECONDS = 60  # a start takes 2, the pickle of a 16 GB shard 0.05
_HINT = "only a flat dict of tensors is read, as torch.save writes it and Meta publishes it"


def read_pth_headers(paths: Sequence[Path]) -> list[tuple[TensorHeader, ...]]:
    """The tensors of each file, in the order of its dict. Errors: FormatError."""
    archives = [open_pth(path) for path in paths]
    with Child("puna.weights.pth_worker", memory_bytes=_MEMORY_BYTES, cpu_seconds=30 + len(paths)) as child:
        return [place_tensors(archive, _ask(child, archive.path)) for archive in archives]


def open_pth(path: Path) -> StoredZip:
    """The entries of a .pth file, `data.pkl`, `data/0`, ..., without the folder they stand in.

    Errors: FormatError: another kind of file, named where it is known; a pickle that is too large; bytes in big-endian.
    """
    _refuse_known(path)
    archive = read_stored_zip(path)
    folder = next(iter(archive.spans), "").partition("/")[0] + "/"
    for name in archive.spans:
        record = name.removeprefix(folder)
        if record == name or not (record in _RECORDS or _STORAGE.fullmatch(record)):
            kind = "TorchScript" if re.match(r"code/|constants\.pkl", record) else "another kind of archive"
            raise FormatError(path, name, "data.pkl, data/N and what torch.save adds", kind, _HINT)
    spans = {name.removeprefix(folder): span for name, span in archive.spans.items()}
    if "data.pkl" not in spans:
        raise FormatError(path, "data.pkl", "a pickle of tensors", "nothing", _HINT)
    numbers = [name for name in spans if _STORAGE.fullmatch(name)]
    if ".format_version" in spans and numbers != [f"data/{number}" for number in range(len(numbers))]:
        raise FormatError(
            path, "data", "data/0, data/1, ... in this order, where torch.load counts on it", "others", _HINT
        )
    begin, end = spans["data.pkl"]
    if end - begin > _MAX_PICKLE_BYTES:
        raise FormatError(path, "data.pkl", f"at most {_MAX_PICKLE_BYTES:,} bytes", f"{end - begin:,}")
    begin, end = spans.get("byteorder", (0, 0))  # PyTorch before 2.0 wrote none, and ran on little-endian machines
    if begin < end and (order := _piece(path, begin, min(end - begin, 16))) != b"little":
        raise FormatError(path, "byteorder", "little", order)
    return StoredZip(path, spans)


def place_tensors(archive: StoredZip, answer: Any) -> tuple[TensorHeader, ...]:
    """The headers that pth_worker's `list_tensors` found, each compared with the archive. Errors: FormatError."""
    storages = {span for name, span in archive.spans.items() if _STORAGE.fullmatch(name)}
    match answer:
        case {"key": str(key), "got": str(got)}:
            raise FormatError(archive.path, _shown(key), "a flat dict of dense tensors", _shown(got), _HINT)
        case [*places]:
            headers = tuple(_header(archive.path, storages, place) for place in places)
        case _:
            raise FormatError(archive.path, "data.pkl", "a list of tensors", reprlib.repr(answer), _HINT)
    if len({header.name for header in headers}) != len(headers):
        raise FormatError(archive.path, "data.pkl", "each name once", "one twice", _HINT)
    return headers


def _ask(child: Child, path: Path) -> Any:
    try:
        return child.ask(str(path.absolute()), _SECONDS)
    except ChildFailed as error:
        expected = f"a pickle that loads within {_SECONDS} s and {_MEMORY_BYTES >> 20} MiB"
        raise FormatError(path, "data.pkl", expected, f"a child that {error.reason}", _HINT) from None


def _header(path: Path, storages: set[tuple[int, int]], place: Any) -> TensorHeader:
    """One tensor: [name, type, shape, strides, first and last storage byte, first element's byte]."""
    match place:
        case [str(name), str(dtype), [*shape], [*strides], [*storage], offset] if (
            all(type(number) is int and 0 <= number < 2**63 for number in (*shape, *strides, *storage, offset))
            and len(shape) == len(strides) <= _MAX_AXES
        ):
            pass
        case _:
            raise FormatError(path, "data.pkl", "name, type and place of a tensor", reprlib.repr(place), _HINT)
    if not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
        raise FormatError(path, "data.pkl", f"printable names of at most {_MAX_NAME}", reprlib.repr(name))
    if dtype not in _BYTES:
        raise FormatError(path, name, f"one of {', '.join(_BYTES)}", _shown(dtype))
    if not _is_contiguous(shape, strides):
        raise FormatError(
            path, name, "a contiguous tensor", f"strides {strides} for {shape}", "save tensor.contiguous()"
        )
    size_bytes = _BYTES[dtype] * math.prod(shape)
    if tuple(storage) not in storages or not storage[0] <= offset <= offset + size_bytes <= storage[1]:
        raise FormatError(path, name, "bytes within one data/N of the archive", f"{size_bytes:,} at {offset:,}")
    return TensorHeader(name=name, dtype=dtype, shape=tuple(shape), bytes=size_bytes, file=path.name, offset=offset)


def _is_contiguous(shape: list[int], strides: list[int]) -> bool:
    """Whether the last axis is innermost; the stride along a single element says nothing."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return 0 in shape
        step *= size
    return True


def _refuse_known(path: Path) -> None:
    """Name what torch.load reads too, and this reader does not."""
    head = _piece(path, 0, 512)
    kinds = {"a TAR file": head[257:262] == b"ustar", "a bare pickle": head[:1] == b"\x80"}
    for kind, is_kind in kinds.items():
        if is_kind:
            raise FormatError(
                path, "format", "an uncompressed zip", kind, "load it with weights_only=True, then torch.save it"
            )


def _piece(path: Path, begin: int, size: int) -> bytes:
    """Bytes of a file; none where it cannot be read, which is for the reader of the zip to say."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                file.seek(begin)
                return file.read(size)
    return b""


def _shown(text: str) -> str:
    """A text from elsewhere, fit for a terminal."""
    return text if text.isprintable() and len(text) <= _MAX_NAME else repr(text[:_MAX_NAME])
