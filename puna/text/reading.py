"""One file as texts: a text file whole, each line of a .jsonl, each row of a .parquet; .gz and .zst are unpacked on the way.

A line is an object with a `text`; a row has a column of that name. A line or row that gives no text is handed on with
the reason, and the next one is read. At no time is more of a file in memory than one line or piece, or 64 rows.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from puna.errors import MissingExtra

__all__ = [
    "Entry",
    "holds_lines",
    "inner_suffix",
    "last_line_end",
    "read_blocks",
    "read_entries",
    "read_lines",
    "read_rows",
]

MAX_RATIO = 1000  # deflate itself stops at 1032: only a bomb comes near
MAX_LINE_BYTES = 16 << 20
MAX_TEXT_BYTES = 4 << 20  # holds any book; its ids, as Python has them, take up to 40 times as much
_PACKED = (".gz", ".zst")
_ROWS_AT_ONCE = 64
_BLOCK_BYTES = 1 << 20
_ZST_BLOCK_BYTES = 1 << 10  # a block of zstd's is 4 bytes at least and 128 KiB unpacked: 32 MiB at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A text and where it stands; or, where a line or row gives none, the fault."""

    name: str
    text: str = ""
    fault: str | None = None


def holds_lines(path: Path) -> bool:
    """Whether a file's entries are lines or rows, of which single ones may be bad."""
    return inner_suffix(path) in (".jsonl", ".parquet")


def read_entries(path: Path) -> Iterator[Entry]:
    """The texts of a file in order. One larger than MAX_TEXT_BYTES comes in pieces, cut at blank lines or line ends.

    Errors: OSError, EOFError or ValueError where the file, or the rest of it, cannot be read; MissingExtra.
    """
    if path.suffix == ".parquet":
        return _rows(path)
    return _lines(path) if holds_lines(path) else _texts(path)


def read_lines(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """(place, line) of a file's lines that are not blank, unpacked; None for a line longer than MAX_LINE_BYTES.

    Only \\n ends a line: JSON text may hold every other separator. Errors: OSError, EOFError, ValueError; MissingExtra.
    """
    number, inside = 0, False
    for piece in _pieces(path, lambda file: file.readline(MAX_LINE_BYTES)):
        goes_on = len(piece) == MAX_LINE_BYTES and not piece.endswith(b"\n")
        if inside:
            inside = goes_on
            continue
        number, inside = number + 1, goes_on
        name = f"{path}:{number}"
        if goes_on:
            yield name, None
            continue
        line = piece.removeprefix(codecs.BOM_UTF8) if number == 1 else piece
        if line.strip():
            yield name, line


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(place, row) of a .parquet, all of its columns that hold something; None for a row whose text is no UTF-8.

    Errors: OSError or ValueError where the file cannot be read; MissingExtra.
    """
    number = 0
    for batch in _batches(path, None):
        for index in range(batch.num_rows):
            number += 1
            try:
                row = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
            except ValueError:
                yield f"{path}:{number}", None
                continue
            yield f"{path}:{number}", {name: value for name, value in row.items() if value is not None}


def read_blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes, unpacked, 1 MiB at a time. Errors: OSError, EOFError, ValueError; MissingExtra."""
    return _pieces(path, lambda file: file.read(_BLOCK_BYTES))


def inner_suffix(path: Path) -> str:
    """The end of a file's name, without that of its packing."""
    return Path(path.stem).suffix if path.suffix in _PACKED else path.suffix


def _texts(path: Path) -> Iterator[Entry]:
    held, number = bytearray(), 0
    for block in read_blocks(path):
        if b"\0" in block:
            raise ValueError("binary (holds NUL bytes)")
        held += block if held or number else block.removeprefix(codecs.BOM_UTF8)
        while len(held) > MAX_TEXT_BYTES:
            cut = _cut_place(held)
            yield Entry(name=f"{path}#{number}", text=held[:cut].decode("utf-8"))
            del held[:cut]
            number += 1
    text = held.decode("utf-8")
    if number == 0 and not text.strip():
        raise ValueError("empty")
    if text:
        yield Entry(name=f"{path}#{number}" if number else str(path), text=text)


def _cut_place(held: bytearray) -> int:
    """The last good place in the first MAX_TEXT_BYTES to end a piece; never inside a character."""
    place = last_line_end(held, MAX_TEXT_BYTES // 2, MAX_TEXT_BYTES)
    if place is not None:
        return place
    starts = (place for place in range(MAX_TEXT_BYTES, 0, -1) if held[place] & 0xC0 != 0x80)
    return next(starts, MAX_TEXT_BYTES)


def last_line_end(text: str | bytearray, low: int, high: int) -> int | None:
    """Behind the last blank line in [low, high), else behind the last line; None where no line ends there."""
    for mark in ("\n\n", "\n\r\n", "\n"):
        place = text.rfind(mark, low, high) if isinstance(text, str) else text.rfind(mark.encode(), low, high)
        if place >= 0:
            return place + len(mark)
    return None


def _lines(path: Path) -> Iterator[Entry]:
    for name, line in read_lines(path):
        if line is None:
            yield Entry(name=name, fault=f"longer than {MAX_LINE_BYTES} bytes")
        else:
            yield _entry(name, _parse_line, line)


def _rows(path: Path) -> Iterator[Entry]:
    number = 0
    for batch in _batches(path, "text"):
        for scalar in batch.column(0):
            number += 1
            yield _entry(f"{path}:{number}", _parse_cell, scalar)


def _batches(path: Path, column: str | None) -> Iterator[Any]:
    """Up to 64 rows at a time of one column, or of all. Errors: ValueError, OSError; MissingExtra."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("reading parquet", "pyarrow", "data") from None
    limit, total = MAX_RATIO * path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path, buffer_size=_BLOCK_BYTES, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if column is not None and column not in names:
                raise ValueError(f"expected a column '{column}', got {', '.join(names)}")
            columns = names if column is None else [column]
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
                total += batch.nbytes
                _refuse_bomb(total, limit)
                yield batch
    except pyarrow.ArrowException as error:
        raise ValueError(f"no parquet that can be read: {error}") from error


def _entry(name: str, parse: Callable[[Any], str], value: object) -> Entry:
    try:
        return Entry(name=name, text=parse(value))
    except (ValueError, RecursionError) as error:
        return Entry(name=name, fault=str(error))


def _parse_line(line: bytes) -> str:
    """The text of one JSON line. Errors: ValueError, RecursionError."""
    value = _DECODER.decode(line.decode("utf-8"))
    return _check_text(value.get("text") if isinstance(value, dict) else None)


def _parse_cell(scalar: Any) -> str:
    return _check_text(scalar.as_py())


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a 'text' that is a string")
    if len(value) > MAX_LINE_BYTES:
        raise ValueError(f"longer than {MAX_LINE_BYTES} characters")
    value.encode("utf-8")  # half a surrogate pair is no text
    if not value.strip():
        raise ValueError("empty text")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def _pieces(path: Path, take: Callable[[BinaryIO], bytes]) -> Iterator[bytes]:
    """A file's bytes, unpacked, as `take` takes them. Errors: ValueError at a ratio only a bomb reaches."""
    limit, total = MAX_RATIO * path.stat().st_size, 0
    with _open(path) as file:
        try:
            while piece := take(file):
                total += len(piece)
                _refuse_bomb(total, limit)
                yield piece
        except zlib.error as error:
            raise ValueError(str(error)) from error


def _refuse_bomb(total: int, limit: int) -> None:
    if total > limit:
        raise ValueError(f"unpacks to more than {MAX_RATIO} times its size")


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_Unpacked(_unpack_zst(path)), _BLOCK_BYTES))
    return path.open("rb")


def _unpack_zst(path: Path) -> Iterator[bytes]:
    """A file's frames one after the other. (The library's own stream takes a cut frame for a whole one.)"""
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("reading .zst", "zstandard", "data") from None
    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    with path.open("rb") as file:
        try:
            while block := file.read(_ZST_BLOCK_BYTES):
                while block:
                    frame = decompressor.decompressobj() if frame.eof else frame
                    yield frame.decompress(block)
                    block = frame.unused_data
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    if not frame.eof:
        raise EOFError("the file ended before the end of its last frame")


class _Unpacked(io.RawIOBase):
    """Blocks of bytes as a file that only reads."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = block
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
