"""Counts and sizes as people write them: 300K, 1.5M, 16GB, 24GiB. Decimal units are powers of 1000, GiB of 1024."""

import re
from decimal import Decimal

from puna.errors import UsageError

__all__ = ["format_bytes", "format_count", "format_seconds", "parse_bytes", "parse_count"]

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


def format_bytes(size: int) -> str:
    """Both ways of counting side by side: `16.06 GB (14.96 GiB)`, or MB (MiB) below one GB."""
    power, decimal, binary = (3, "GB", "GiB") if size >= 10**9 else (2, "MB", "MiB")
    return f"{size / 1000**power:,.2f} {decimal} ({size / 1024**power:,.2f} {binary})"


def format_count(count: float) -> str:
    """Four significant digits and a letter: `8.03G`, `41.94M`, `512`."""
    for letter, unit in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= unit:
            return f"{count / unit:.4g}{letter}"
    return f"{count:.4g}"


def format_seconds(seconds: float) -> str:
    """`41 s`, `12.5 min`, `3.1 h` or `2.4 days`."""
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"


def _parse(text: str, units: dict[str, int], expected: str) -> int:
    match = _NUMBER.fullmatch(text)
    factor = {name.upper(): value for name, value in units.items()}.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError(f"expected {expected}, got '{text}'", f"units: {', '.join(name for name in units if name)}")
    value = Decimal(match[1].replace("_", "")) * factor
    if value != int(value):
        raise UsageError(f"expected a whole number, got '{text}'", f"write {expected}")
    return int(value)
