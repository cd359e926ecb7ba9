"""Intervals in rows: a category's name above, its mean and the interval around it, and single values as small dots.

After Cleveland, The Elements of Graphing Data (1985): dots on a common scale, zero marked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.report.axes import SIZE, Axis, canvas, format_axis
from puna.report.numbers import in_format
from puna.report.svg import placeholder, series_shade

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Interval", "IntervalChart", "draw_intervals"]

_ROW, _TOP, _BOTTOM, _SIDE = 50, 8, 46, 60  # pixels
_BEYOND = 1.25  # a limit lies so far out as the outermost value


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean from `low` to `high`; dots: what it is the mean of. is_clear: zero lies outside, drawn in full."""

    name: str
    mean: float
    low: float
    high: float
    dots: Sequence[float] = ()
    is_clear: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalChart:
    """Rows on one scale, around a vertical at zero."""

    axis: Axis
    rows: Sequence[Interval]


def draw_intervals(chart: IntervalChart, width: int) -> "Figure":
    """Draw the rows, as high as they need."""
    height = _TOP + _ROW * len(chart.rows) + _BOTTOM
    figure, axes = canvas(width, height, left=14, right=_SIDE, top=_TOP, bottom=_BOTTOM)
    values = [0.0, *(value for row in chart.rows for value in (row.low, row.high, *row.dots))]
    low, high = _BEYOND * min(values), _BEYOND * max(values)
    axes.set_xlim(low, high if high > low else low + 1.0)
    axes.set_ylim(_ROW * len(chart.rows), 0)
    axes.axvline(0, color=placeholder("muted"), linewidth=1.0)
    for number, row in enumerate(chart.rows):
        y, colour = _ROW * number + 32, placeholder(series_shade(0) if row.is_clear else "muted")
        axes.annotate(row.name, (0, y), (2, 14), xycoords=("axes fraction", "data"), textcoords="offset points",
                      color=placeholder("ink"), fontsize=SIZE)  # fmt: skip
        axes.plot((row.low, row.high), (y, y), color=colour, linewidth=3, solid_capstyle="round", alpha=0.55)
        axes.plot(row.dots, [y] * len(row.dots), "o", color=colour, markersize=4, alpha=0.7)
        axes.plot([row.mean], [y], "D", color=colour, markersize=7)
        axes.annotate(in_format(row.mean, chart.axis.form), (1, y), (8, -4), xycoords=("axes fraction", "data"),
                      textcoords="offset points", color=placeholder("ink"), fontsize=SIZE)  # fmt: skip
    axes.yaxis.set_visible(False)
    format_axis(axes.xaxis, chart.axis, 5)
    axes.grid(axis="x", color=placeholder("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.annotate(chart.axis.label, (1, 0), (0, -38), xycoords="axes fraction", textcoords="offset points", ha="right",
                  color=placeholder("muted"), fontsize=SIZE - 1)  # fmt: skip
    return figure
