"""Numbers as people read them: three significant digits and a fitting unit, never "1000 MB"."""

import math
from typing import Literal

__all__ = ["NumberFormat", "human_bytes", "human_count", "human_number", "human_percent", "human_seconds", "in_format"]

NumberFormat = Literal["number", "count", "bytes", "seconds", "percent"]

_DECIMAL_BYTES = (" B", " kB", " MB", " GB", " TB", " PB")
_BINARY_BYTES = (" B", " KiB", " MiB", " GiB", " TiB", " PiB")
_COUNTS = ("", "K", "M", "B", "T")


def human_bytes(value: float, *, is_binary: bool = False) -> str:
    """Bytes as `1.23 GB` (powers of 1000), or as `1.15 GiB` (powers of 1024)."""
    return _scaled(value, 1024, _BINARY_BYTES) if is_binary else _scaled(value, 1000, _DECIMAL_BYTES)


def human_count(value: float) -> str:
    """A count as `512`, `41.9M` or `8.03B`."""
    return _scaled(value, 1000, _COUNTS)


def human_number(value: float) -> str:
    """A plain number: integers whole, others with three significant digits; from 1000 on thousands separators."""
    is_whole = isinstance(value, int) or value == 0 or 999.5 <= abs(value) < math.inf
    text = f"{value:,.0f}" if is_whole else f"{value:#.3g}".removesuffix(".")
    return text.replace("-", "−")


def human_percent(share: float) -> str:
    """A share as a percentage: 0.0521 is `5.21 %`."""
    return _scaled(100 * share, 1000, (" %",))


def human_seconds(value: float) -> str:
    """A duration as `12 ms`, `3.4 s`, `1 min 35 s`, `2 h 5 min` or `3 d 4 h`."""
    if not math.isfinite(value):
        return human_number(value)
    if value < 0:
        return f"−{human_seconds(-value)}"
    if value < 0.9995:
        return _scaled(value * 1e6, 1000, (" µs", " ms"))
    if value < 59.95:
        return f"{value:.3g} s"
    for size, unit, part, part_unit in ((60, "min", 1, "s"), (3600, "h", 60, "min"), (86400, "d", 3600, "h")):
        whole, rest = divmod(round(value / part), size // part)
        if (unit == "min" and whole < 60) or (unit == "h" and whole < 24) or unit == "d":
            return f"{whole} {unit} {rest} {part_unit}" if rest else f"{whole} {unit}"
    raise AssertionError("days hold every duration")


def in_format(value: float, form: NumberFormat) -> str:
    """The value in one of the forms above."""
    writers = {
        "number": human_number,
        "count": human_count,
        "bytes": human_bytes,
        "seconds": human_seconds,
        "percent": human_percent,
    }
    return writers[form](value)


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return human_number(value)
    exponent = 0
    while exponent < len(units) - 1 and float(f"{abs(value):.4g}" if step == 1024 else f"{abs(value):.3g}") >= step:
        value, exponent = value / step, exponent + 1
    digits = f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
    return digits.replace("-", "−") + units[exponent]
