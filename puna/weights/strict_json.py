"""JSON from elsewhere, read strictly: bounded size, one value for each key, no NaN, and a refusal that names file and key.

Two readers may disagree about a duplicated key or a NaN; we refuse both. `null` is not missing and 0 is a value.
"""

import json
import reprlib
import sys
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from puna.errors import FormatError

__all__ = ["JsonObject", "parse_object", "read_object"]

_MAX_BYTES = 32 << 20
_MAX_KEY = 512  # characters; a key is shown in errors


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object of a JSON file; `prefix` says where in the file it stands (`rope_parameters.`)."""

    path: Path
    values: dict[str, Any]
    prefix: str = ""

    def refuse(self, key: str, expected: str, hint: str = "") -> FormatError:
        """The error for a key that is not what it should be."""
        got = reprlib.repr(self.values[key]) if key in self.values else "nothing"
        return FormatError(self.path, self.prefix + key, expected, got, hint)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A whole number below 2^63; the key is required where there is no default."""
        value = self.values.get(key, default)
        if type(value) is not int or not minimum <= value < 2**63:
            raise self.refuse(key, f"a whole number of at least {minimum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; the key is required where there is no default."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise self.refuse(key, "a number")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key, default)
        if type(value) is not bool:
            raise self.refuse(key, "true or false")
        return value

    def one_of(self, key: str, choices: Container[str], *, expected: str, hint: str = "") -> str:
        """A required text that is one of `choices`."""
        value = self.values.get(key)
        if not isinstance(value, str) or value not in choices:
            raise self.refuse(key, expected, hint)
        return value

    def items(self, key: str) -> list[Any]:
        """A required list."""
        value = self.values.get(key)
        if not isinstance(value, list):
            raise self.refuse(key, "a list")
        return value

    def child(self, key: str) -> "JsonObject":
        """A required object."""
        return self.nested(key, self.values.get(key))

    def nested(self, key: str, value: object) -> "JsonObject":
        """A value found under `key`, which must be an object."""
        if not isinstance(value, dict):
            raise FormatError(self.path, self.prefix + key, "an object", reprlib.repr(value))
        return JsonObject(self.path, value, f"{self.prefix}{key}.")

    def only(self, *known: str) -> None:
        """Refuse every key that is none of `known`."""
        for key in self.values.keys() - set(known):
            raise self.refuse(key, "nothing (an unknown key)")


def read_object(path: Path) -> JsonObject:
    """Read a JSON file that holds one object. Errors: FormatError."""
    try:
        if not path.is_file():
            raise FormatError(path, "file", "a JSON file", "nothing")
        if path.stat().st_size > _MAX_BYTES:
            raise FormatError(path, "file", f"at most {_MAX_BYTES:,} bytes", f"{path.stat().st_size:,}")
        return parse_object(path, path.read_bytes())
    except OSError as error:
        raise FormatError(path, "file", "a file that can be read", error.strerror) from None


def parse_object(path: Path, data: bytes) -> JsonObject:
    """The object in a piece of a file. Errors: FormatError."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if b"\\ud" in data.lower():
            _refuse_half_a_pair(value)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "file", "strict JSON", error) from None
    if not isinstance(value, dict):
        raise FormatError(path, "file", "a JSON object", reprlib.repr(value))
    return JsonObject(path, value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {reprlib.repr(key)} stands twice")
        if len(key) > _MAX_KEY or not key.isprintable():
            raise ValueError(f"a key that cannot be shown: {reprlib.repr(key)}")
        values[key] = value
    return values


def _refuse_half_a_pair(value: object) -> None:
    """It is no character: no file could hold it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
