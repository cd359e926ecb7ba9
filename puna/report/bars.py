"""Horizontal bars: a category's name above, its values at the ends, side by side or stacked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.report.axes import SIZE, SMALL, WIDE, Axis, Reference, canvas, format_axis
from puna.report.numbers import NumberFormat, in_format
from puna.report.svg import placeholder, series_shade, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BarChart", "Bars", "draw_bars"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One value for each category of a BarChart; in a stack a 0 leaves no trace."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Horizontal bars under their category's name: side by side, or stacked with the total at the end."""

    axis: Axis
    categories: Sequence[str]
    series: Sequence[Bars]
    is_stacked: bool = False
    references: Sequence[Reference] = ()

    def __post_init__(self) -> None:
        assert all(len(bars.values) == len(self.categories) for bars in self.series)


def draw_bars(chart: BarChart, width: int) -> "Figure":
    """Draw horizontal bars, a row for each category, as high as they need."""
    slots = 1 if chart.is_stacked else len(chart.series)
    bar, pitch = (24, 26) if slots == 1 else (18, 20)
    step = 22 + slots * pitch + 12
    ends = [[bars.values[row] for bars in chart.series] for row in range(len(chart.categories))]
    totals = [sum(values) for values in ends] if chart.is_stacked else [value for values in ends for value in values]
    marks = [reference.value for reference in chart.references]
    low, high = min(0.0, *totals, *marks), max(0.0, *totals, *marks)
    room = 10 + max(text_width(in_format(total, chart.axis.form), SIZE) for total in totals)
    inner = width - 2 - 14
    unit = (high - low if high > low else 1.0) / (inner - room * (2 if low < 0 else 1))
    limits = (low - unit * room if low < 0 else 0.0, high + unit * room)
    levels = _levels([((mark - limits[0]) / unit, text_width(reference.label, SMALL) + 12)
                      for mark, reference in zip(marks, chart.references, strict=True)])  # fmt: skip
    top = 4 + 16 * (1 + max(levels, default=-1))
    height = top + step * len(chart.categories) + 44
    figure, axes = canvas(width, height, left=2, right=14, top=top, bottom=44)
    axes.set_xlim(*limits)
    axes.set_ylim(step * len(chart.categories), 0)
    for row, category in enumerate(chart.categories):
        axes.annotate(category, (0, step * row + 15), color=placeholder("ink"))
        (_stack if chart.is_stacked else _group)(axes, chart, row, step * row + 22 + pitch / 2, bar, pitch)
    _vertical_references(axes, chart.references, levels)
    format_axis(axes.xaxis, chart.axis, 6 if width >= WIDE else 4)
    axes.yaxis.set_visible(False)
    axes.grid(axis="x", color=placeholder("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.annotate(chart.axis.label, (1, 0), (0, -38), xycoords="axes fraction", textcoords="offset points", ha="right",
                  color=placeholder("muted"), fontsize=SMALL)  # fmt: skip
    return figure


def _stack(axes: "Axes", chart: BarChart, row: int, middle: float, bar: int, _pitch: int) -> None:
    total = 0.0
    for index, bars in enumerate(chart.series):
        if bars.values[row]:
            axes.barh(middle, bars.values[row], bar, left=total, color=placeholder(series_shade(index)),
                      edgecolor=placeholder("paper"), linewidth=1.0)  # fmt: skip
            total += bars.values[row]
    _value(axes, total, middle, chart.axis.form)


def _group(axes: "Axes", chart: BarChart, row: int, middle: float, bar: int, pitch: int) -> None:
    for index, bars in enumerate(chart.series):
        axes.barh(middle + index * pitch, bars.values[row], bar, color=placeholder(series_shade(index)), linewidth=0)
        _value(axes, bars.values[row], middle + index * pitch, chart.axis.form)


def _value(axes: "Axes", value: float, y: float, form: NumberFormat) -> None:
    axes.annotate(in_format(value, form), (value, y), (5 if value >= 0 else -5, 0), textcoords="offset points",
                  va="center", ha="left" if value >= 0 else "right", color=placeholder("ink"))  # fmt: skip


def _vertical_references(axes: "Axes", references: Sequence[Reference], levels: Sequence[int]) -> None:
    for reference, level in zip(references, levels, strict=True):
        axes.axvline(reference.value, color=placeholder("muted"), linewidth=1.0, linestyle=(0, (4, 3)), zorder=0.8)
        axes.annotate(reference.label, (reference.value, 1), (0, 4 + 16 * level), xycoords=("data", "axes fraction"),
                      textcoords="offset points", ha="center", color=placeholder("muted"), fontsize=SMALL)  # fmt: skip


def _levels(labels: Sequence[tuple[float, float]]) -> list[int]:
    """The lowest row for each (centre, width) in which it touches no earlier label."""
    rows: list[list[tuple[float, float]]] = []
    levels = []
    for centre, width in labels:
        span = (centre - width / 2, centre + width / 2)
        level = next((i for i, row in enumerate(rows) if all(span[0] >= b or span[1] <= a for a, b in row)), len(rows))
        rows.extend([[]] if level == len(rows) else [])
        rows[level].append(span)
        levels.append(level)
    return levels
