"""tokenizer.model of Llama 1 and 2: a protobuf, read field by field and bounded by its length.

    ModelProto: pieces = 1 {piece 1, score 2, type 3}, trainer_spec = 2 {model_type 3, treat_whitespace_as_suffix 24,
    byte_fallback 35, bos_id 41, eos_id 42, pad_id 43}, normalizer_spec = 3 {name 1, precompiled_charsmap 2,
    add_dummy_prefix 3, remove_extra_whitespaces 4, escape_whitespaces 5}

What would change ids and is not computed here is refused by name. Format: docs/formats.md 4; protobuf's wire format.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from puna.errors import FormatError
from puna.tokens.pieces import NORMAL, Piece

__all__ = ["SentencePieceFile", "parse_sentencepiece"]

_BPE = 2
_MOST_PIECES = 1 << 20
_WIRE_VARINT, _WIRE_64, _WIRE_BYTES, _WIRE_32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceFile:
    """The pieces in the order of their ids, and which of them begin and end a text (None: none)."""

    pieces: tuple[Piece, ...]
    is_prefixed: bool
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None


def parse_sentencepiece(data: bytes, path: object) -> SentencePieceFile:
    """Read a model. Errors: FormatError naming the field."""
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(data, path):
        if field in (1, 2, 3) and not isinstance(value, bytes):
            raise FormatError(path, f"field {field}", "a message", value)
        if field == 1 and isinstance(value, bytes):
            pieces.append(_piece(value, len(pieces), path))
        elif field in (2, 3) and isinstance(value, bytes):
            (trainer if field == 2 else normalizer).update(_fields(value, path))
    if not 0 < len(pieces) <= _MOST_PIECES:
        raise FormatError(path, "pieces", f"1 to {_MOST_PIECES:,}", len(pieces))
    _refuse_what_we_lack(trainer, normalizer, path)
    bos, eos, pad = (
        _special(trainer, field, default, len(pieces), path) for field, default in ((41, 1), (42, 2), (43, -1))
    )
    is_prefixed = bool(normalizer.get(3, 1))
    return SentencePieceFile(pieces=tuple(pieces), is_prefixed=is_prefixed, bos_id=bos, eos_id=eos, pad_id=pad)


def _piece(data: bytes, index: int, path: object) -> Piece:
    found = dict(_fields(data, path))
    text, score, kind = found.get(1, b""), found.get(2, 0), found.get(3, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, int) or not isinstance(kind, int):
        raise FormatError(path, f"pieces[{index}]", "a text, a score and a type", "other kinds of fields")
    try:
        return Piece(text.decode(), struct.unpack("<f", struct.pack("<I", score))[0], kind)
    except (UnicodeDecodeError, struct.error) as error:
        raise FormatError(path, f"pieces[{index}]", "UTF-8 and a 32-bit score", error) from None


def _refuse_what_we_lack(trainer: dict[int, int | bytes], normalizer: dict[int, int | bytes], path: object) -> None:
    wanted = (
        ("trainer_spec.model_type", trainer.get(3, 1), _BPE, "BPE"),
        ("trainer_spec.treat_whitespace_as_suffix", trainer.get(24, 0), 0, "false"),
        ("trainer_spec.byte_fallback", trainer.get(35, 0), 1, "true"),
        ("normalizer_spec.name", normalizer.get(1, b""), b"identity", "identity"),
        ("normalizer_spec.precompiled_charsmap", normalizer.get(2, b""), b"", "nothing"),
        ("normalizer_spec.remove_extra_whitespaces", normalizer.get(4, 1), 0, "false"),
        ("normalizer_spec.escape_whitespaces", normalizer.get(5, 1), 1, "true"),
    )
    for key, got, expected, words in wanted:
        if got != expected:
            raise FormatError(path, key, words, got, "only the vocabularies of Llama 1 and 2 are read")


def _special(trainer: dict[int, int | bytes], field: int, default: int, count: int, path: object) -> int | None:
    value = trainer.get(field, default)
    if not isinstance(value, int):
        raise FormatError(path, f"trainer_spec field {field}", "an id", value)
    index = value - (1 << 64) if value >= 1 << 63 else value
    if index >= count:
        raise FormatError(path, f"trainer_spec field {field}", f"an id below {count}", index)
    return index if index >= 0 else None


def _fields(data: bytes, path: object) -> Iterator[tuple[int, int | bytes]]:
    """Each field of a message: its number, and its bytes or its number (floats as their bits)."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position, path)
        field, wire = key >> 3, key & 7
        if wire == _WIRE_VARINT:
            value, position = _varint(data, position, path)
            yield field, value
            continue
        if wire == _WIRE_BYTES:
            size, position = _varint(data, position, path)
        else:
            size = {_WIRE_64: 8, _WIRE_32: 4}.get(wire, -1)
        if not 0 <= size <= len(data) - position:
            raise FormatError(path, f"field {field}", "bytes within the file", f"{size} of wire type {wire}")
        part, position = data[position : position + size], position + size
        yield field, part if wire == _WIRE_BYTES else int.from_bytes(part, "little")


def _varint(data: bytes, position: int, path: object) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(data[position : position + 10]):
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return value, position + count + 1
    raise FormatError(path, "file", "protobuf", "a number without an end")
