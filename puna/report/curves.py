"""Lines and points: what changes with what, each series named beside its data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.report.axes import SIZE, SMALL, WIDE, Axis, Reference, canvas, format_axis
from puna.report.svg import placeholder, series_shade, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LineChart", "ScatterChart", "Series", "draw_curves"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one name.

    Args:    spread: half the height of each point's error bar; names: a word beside each point (both: ScatterChart);
             average_over: the bold line averages so many values, the values themselves are faint (LineChart).
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    names: Sequence[str] = ()
    average_over: int = 1

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.y) >= 1, self.name
        assert self.spread is None or len(self.spread) == len(self.y), self.name
        assert len(self.names) in (0, len(self.y)), self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Curves over a common x, each named at its right end."""

    x: Axis
    y: Axis
    series: Sequence[Series]
    references: Sequence[Reference] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterChart:
    """Points with error bars, each series named at its highest point.

    floor:     what lies below is drawn there; a logarithmic y needs one, for it has no zero.
    is_joined: whether the points of a series are connected: they are where x is what was chosen, not what was measured.
    """

    x: Axis
    y: Axis
    series: Sequence[Series]
    references: Sequence[Reference] = ()
    floor: float = -math.inf
    is_joined: bool = True


def draw_curves(chart: LineChart | ScatterChart, width: int) -> "Figure":
    """Draw lines or points with their references; wide figures name each series at its end."""
    is_line, is_wide = isinstance(chart, LineChart), width >= WIDE
    right = 14.0
    is_named = is_wide and len(chart.series) > 1
    if is_line and is_named:
        right += min(max(text_width(series.name, SIZE) for series in chart.series), 0.3 * width)
    figure, axes = canvas(width, 330 if is_wide else 270, left=54, right=right, top=34, bottom=46)
    axes.set_xscale("log" if chart.x.is_log else "linear")
    axes.set_yscale("log" if chart.y.is_log else "linear")
    for index, series in enumerate(chart.series):
        colour = placeholder(series_shade(index))
        if isinstance(chart, LineChart):
            _line(axes, series, colour)
        else:
            _points(axes, chart, series, colour)
    _references(axes, chart.references, 4 if is_line else -15)
    axes.margins(x=0.01 if is_line else 0.07, y=0.08 if is_line else 0.12)
    format_axis(axes.xaxis, chart.x, 6 if is_wide else 4)
    format_axis(axes.yaxis, chart.y, 5)
    axes.grid(axis="y", color=placeholder("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.annotate(chart.y.label, (0, 1), (-52, 10), xycoords="axes fraction", textcoords="offset points",
                  color=placeholder("muted"), fontsize=SMALL)  # fmt: skip
    axes.annotate(chart.x.label, (1, 0), (0, -38), xycoords="axes fraction", textcoords="offset points", ha="right",
                  color=placeholder("muted"), fontsize=SMALL)  # fmt: skip
    if is_named and isinstance(chart, LineChart):
        _name_at_end(axes, chart.series)
    elif is_named and isinstance(chart, ScatterChart):
        _name_at_top(axes, chart.series, chart.floor)
    return figure


def _line(axes: "Axes", series: Series, colour: str) -> None:
    if series.average_over > 1:
        axes.plot(series.x, series.y, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(series.x, _averaged(series), color=colour, linewidth=2.0, solid_capstyle="round")


def _points(axes: "Axes", chart: ScatterChart, series: Series, colour: str) -> None:
    floor = chart.floor
    spread = [0.0] * len(series.y) if series.spread is None else series.spread
    heights = [max(y, floor) for y in series.y]
    tops = [max(y + half, floor) for y, half in zip(series.y, spread, strict=True)]
    if series.spread is not None:
        bottoms = [max(y - half, floor) for y, half in zip(series.y, spread, strict=True)]
        reach = [[y - low for y, low in zip(heights, bottoms, strict=True)],
                 [top - y for y, top in zip(heights, tops, strict=True)]]  # fmt: skip
        axes.errorbar(series.x, heights, yerr=reach, fmt="none", color=colour, elinewidth=1.2, capsize=3)
    axes.plot(series.x, heights, color=colour, linewidth=1.4 if chart.is_joined else 0.0, marker="o", markersize=8,
              markeredgecolor=placeholder("paper"), markeredgewidth=1.2)  # fmt: skip
    for x, y, name in zip(series.x, tops, series.names, strict=False):
        axes.annotate(name, (x, y), (0, 8), textcoords="offset points", ha="center", zorder=1.5,
                      color=placeholder("muted"), fontsize=SMALL)  # fmt: skip


def _name_at_end(axes: "Axes", series: Sequence[Series]) -> None:
    ends = [(one.x[-1], _averaged(one)[-1]) for one in series]
    heights = [axes.transData.transform(end)[1] for end in ends]
    for index, (one, end, shift) in enumerate(zip(series, ends, _shifts(heights, 16), strict=True)):
        axes.annotate(one.name, end, (8, shift), textcoords="offset points", va="center",
                      color=placeholder(series_shade(index)), annotation_clip=False)  # fmt: skip


def _name_at_top(axes: "Axes", series: Sequence[Series], floor: float) -> None:
    highest = [max(zip(one.x, one.y, strict=True), key=lambda point: point[1]) for one in series]
    tops = [(x, max(y, floor)) for x, y in highest]
    places = [axes.transData.transform(top) for top in tops]
    middle = axes.transAxes.transform((0.6, 0))[0]
    for index, (one, top, place, shift) in enumerate(
        zip(series, tops, places, _shifts([place[1] for place in places], 16), strict=True)
    ):
        is_left = place[0] < middle
        axes.annotate(one.name, top, (10 if is_left else -10, shift), textcoords="offset points", va="center",
                      ha="left" if is_left else "right", color=placeholder(series_shade(index)))  # fmt: skip


def _references(axes: "Axes", references: Sequence[Reference], lift: int) -> None:
    for reference in references:
        axes.axhline(reference.value, color=placeholder("muted"), linewidth=1.0, linestyle=(0, (4, 3)))
        axes.annotate(reference.label, (1, reference.value), (-2, lift), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", color=placeholder("muted"), fontsize=SMALL)  # fmt: skip


def _averaged(series: Series) -> list[float]:
    """The mean over `average_over` neighbours around each value; at both ends, over those there are."""
    before, after = series.average_over // 2, (series.average_over + 1) // 2
    values = list(series.y)
    windows = (values[max(0, index - before) : index + after] for index in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _shifts(heights: Sequence[float], gap: float) -> list[float]:
    """How far to move each label up or down so that none is nearer than `gap` to another."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed: dict[int, float] = {}
    floor = float("-inf")
    for index in order:
        placed[index] = floor = max(heights[index], floor + gap)
    return [placed[index] - heights[index] for index in range(len(heights))]
