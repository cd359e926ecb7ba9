"""Counts and sizes as people write them: 300K, 1.5M, 16GB, 24GiB. Decimal units are powers of 1000, GiB of 1024."""

import re
from decimal import Decimal

from puna.errors import UsageError

__all__ = ["parse_bytes", "parse_count"]

_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_SIZES = {"": 1, "B": 1} | {
    f"{letter}{unit}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in (("B", 1000), ("iB", 1024))
}
_NUMBER = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_count(text: str) -> int:
    """`5000`, `300K`, `1.5M`, `2G` (or `2B`) -> a whole number. Errors: UsageError."""
    return _parse(text, _COUNTS, "a count such as 5000, 300K or 1.5M")


def parse_bytes(text: str) -> int:
    """`16GB` (16 x 1000^3), `16GiB` (16 x 1024^3), `512MB` or plain bytes -> bytes. Errors: UsageError."""
    return _parse(text, _SIZES, "a size such as 16GB or 24GiB")


def _parse(text: str, units: dict[str, int], expected: str) -> int:
    match = _NUMBER.fullmatch(text)
    factor = {name.upper(): value for name, value in units.items()}.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError(f"expected {expected}, got '{text}'", f"units: {', '.join(name for name in units if name)}")
    value = Decimal(match[1].replace("_", "")) * factor
    if value != int(value):
        raise UsageError(f"expected a whole number, got '{text}'", f"write {expected}")
    return int(value)
