"""An uncompressed zip, read strictly: where each entry's bytes stand in the file.

    entry: local header, name, extra, bytes, descriptor     ...     directory, zip64 end and locator, end

Refused is whatever two readers could take for different things: a compressed entry, a name that stands twice or leaves
the archive, entries that overlap, bytes before the first one or after the end. Nothing is read before its size was
compared with the file's. Source: PKWARE's APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from puna.errors import FormatError

__all__ = ["StoredZip", "read_stored_zip"]

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_ZIP64_END = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_ZIP64_FIELD = 1
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFF_FFFF  # the number stands in a zip64 record
_HARMLESS_FLAGS = 0x808  # the sizes follow the bytes too; names are UTF-8
_MAX_DIRECTORY_BYTES = 16 << 20
_HINT = "save it again with torch.save, which does not compress"


@dataclass(frozen=True, slots=True)
class StoredZip:
    """The entries of a zip file: `spans[name]` is [begin, end) of the entry's bytes in the file."""

    path: Path
    spans: dict[str, tuple[int, int]]


def read_stored_zip(path: Path) -> StoredZip:
    """The entries of an uncompressed zip file. Errors: FormatError naming the entry or the part of the file."""
    try:
        if not path.is_file():
            raise FormatError(path, "file", "a zip file", "nothing")
        with path.open("rb") as file:
            reader = _Reader(path, file)
            count, begin, size = _directory(reader, path.stat().st_size)
            entries = sorted(_entries(reader, count, reader.read(begin, size)))
            return StoredZip(path, dict(_spans(reader, entries, begin)))
    except OSError as error:
        raise FormatError(path, "file", "a file that can be read", error.strerror) from None


@dataclass(frozen=True, slots=True)
class _Reader:
    """A file that is read in pieces, each of them whole."""

    path: Path
    file: BinaryIO

    def read(self, begin: int, size: int) -> bytes:
        self.file.seek(begin)
        data = self.file.read(size)
        if len(data) != size:
            raise self.refuse("file", f"{begin + size:,} bytes", "fewer")
        return data

    def record(self, layout: struct.Struct, begin: int, magic: bytes, name: str) -> tuple[int, ...]:
        """The numbers of a record that must stand at `begin`."""
        if begin < 0:
            raise self.refuse("file", "a zip file", "too few bytes", _HINT)
        found, *numbers = layout.unpack(self.read(begin, layout.size))
        if found != magic:
            raise self.refuse("file", f"a zip file, its {name} at byte {begin:,}", found, _HINT)
        return tuple(numbers)

    def refuse(self, key: str, expected: str, got: object, hint: str = "") -> FormatError:
        return FormatError(self.path, key, expected, got, hint)


def _directory(reader: _Reader, file_bytes: int) -> tuple[int, int, int]:
    """How many entries the directory has, where it begins, and its size in bytes."""
    end = file_bytes - _END.size
    *disks, here, count, size, begin, comment = reader.record(_END, end, b"PK\5\6", "end record")
    locator = end - _LOCATOR.size
    if locator >= 0 and reader.read(locator, 4) == b"PK\6\7":
        short = here, count, size, begin
        end = locator - _ZIP64_END.size
        disk, at, _ = reader.record(_LOCATOR, locator, b"PK\6\7", "zip64 locator")
        _, _, _, *more, here, count, size, begin = reader.record(_ZIP64_END, end, b"PK\6\6", "zip64 end record")
        full = _FULL_16, _FULL_16, _FULL_32, _FULL_32
        pairs = zip(short, full, (here, count, size, begin), strict=True)
        if at != end or not all(value in (none, wide) for value, none, wide in pairs):
            raise reader.refuse("directory", "zip and zip64 records that agree", "others", _HINT)
        disks += [disk, *more]
    if any(disks) or comment or here != count:
        raise reader.refuse("directory", "one file without a comment", "parts or a comment", _HINT)
    if size > _MAX_DIRECTORY_BYTES or begin + size != end:
        expected = f"at most {_MAX_DIRECTORY_BYTES:,} bytes up to byte {end:,}"
        raise reader.refuse("directory", expected, f"{size:,} from byte {begin:,}", _HINT)
    return count, begin, size


def _entries(reader: _Reader, count: int, directory: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(local header's place, bytes, flags, name) of each entry of the directory."""
    position = 0
    for number in range(count):
        start = position + _ENTRY.size
        if start > len(directory):
            raise reader.refuse("directory", f"{count:,} entries", f"{number:,}")
        (magic, _, _, flags, method, _, _, _, packed, size, name_size, extra_size, comment, disk, _, _, at) = (
            _ENTRY.unpack_from(directory, position)
        )
        name, extra = directory[start : start + name_size], directory[start + name_size :][:extra_size]
        position = start + name_size + extra_size
        if magic != b"PK\1\2" or comment or disk or position > len(directory):
            raise reader.refuse("directory", "whole entries without comments", f"entry {number}: something else")
        if method or flags & ~_HARMLESS_FLAGS:
            expected = "an entry that is neither compressed nor encrypted"
            raise reader.refuse(_shown(name), expected, f"method {method}, flags {flags:#x}", _HINT)
        size, packed, at = _widen(reader, name, extra, [size, packed, at])
        if size != packed:
            raise reader.refuse(_shown(name), "one size, since it is not compressed", f"{size:,} and {packed:,}")
        yield at, size, flags, name
    if position != len(directory):
        raise reader.refuse("directory", f"{count:,} entries", "more bytes")


def _widen(reader: _Reader, name: bytes, extra: bytes, numbers: list[int]) -> list[int]:
    """The numbers, those that need more than 32 bits taken from the entry's zip64 field."""
    wide = b""
    while len(extra) >= 4 and not wide:
        kind, size = struct.unpack_from("<2H", extra)
        wide = extra[4 : 4 + size] if kind == _ZIP64_FIELD else b""
        extra = extra[4 + size :]
    missing = numbers.count(_FULL_32)
    if len(wide) < 8 * missing:
        raise reader.refuse(_shown(name), f"{missing} numbers of 64 bits", f"{len(wide)} bytes of them", _HINT)
    values = iter(struct.unpack_from(f"<{missing}Q", wide))
    return [next(values) if number == _FULL_32 else number for number in numbers]


def _spans(
    reader: _Reader, entries: list[tuple[int, int, int, bytes]], limit: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and place of each entry's bytes, in the order of the file; the directory begins at `limit`."""
    position, names = 0, set()
    for at, size, flags, raw in entries:
        name = _shown(raw)
        if not position <= at < limit or (position == 0 and at):
            raise reader.refuse(name, f"an entry from byte {position:,} on", f"one at {at:,}", _HINT)
        _, local_flags, method, *_, name_size, extra_size = reader.record(_LOCAL, at, b"PK\3\4", "local header")
        begin = at + _LOCAL.size + name_size + extra_size
        if (local_flags, method, reader.read(at + _LOCAL.size, name_size)) != (flags, 0, raw):
            raise reader.refuse(name, "the same in its local header", "another name or method", _HINT)
        position = begin + size
        if position > limit:
            raise reader.refuse(name, f"an end by byte {limit:,}", f"{position:,}", _HINT)
        if name in names or name.encode() != raw or {"", ".", ".."} & set(name.split("/")):
            raise reader.refuse(name, "a relative name in ASCII that stands once", "another", _HINT)
        names.add(name)
        yield name, (begin, position)


def _shown(name: bytes) -> str:
    """A name as itself where it is printable ASCII, else escaped."""
    return name.decode("latin-1").encode("unicode_escape").decode()
