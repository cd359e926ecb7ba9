"""Small panels side by side on one scale: in each a curve and the band that its like fill.

Small multiples after Tufte, Envisioning Information (1990): what differs between the panels is the data alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.report.axes import SIZE, SMALL, WIDE, Axis, add_axes, blank, format_axis
from puna.report.svg import placeholder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "PanelChart", "draw_panels"]

_HEIGHT, _TITLE, _GAP, _LEFT, _TOP, _BOTTOM = 128, 24, 40, 56, 24, 46  # pixels
_SHADE = "series-0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A curve `middle` between `low` and `high` over x; `mark`: where a dashed vertical stands."""

    name: str
    x: Sequence[float]
    low: Sequence[float]
    middle: Sequence[float]
    high: Sequence[float]
    mark: float | None = None

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.low) == len(self.middle) == len(self.high) >= 1, self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelChart:
    """Panels under common limits; a logarithmic y ends at `least`, and what lies below it is not drawn."""

    x: Axis
    y: Axis
    panels: Sequence[Panel]
    least: float = 0.001


def draw_panels(chart: PanelChart, width: int) -> "Figure":
    """Draw up to four panels in a row, two where the page is narrow; fewer are wider."""
    columns = min(len(chart.panels), 4 if width >= WIDE else 2)
    rows = -(-len(chart.panels) // columns)
    wide = (width - _LEFT - 16 - _GAP * (columns - 1)) / columns
    height = _TOP + rows * (_TITLE + _HEIGHT) + (rows - 1) * _GAP + _BOTTOM
    figure = blank(width, height)
    for index, panel in enumerate(chart.panels):
        row, column = divmod(index, columns)
        left = _LEFT + column * (wide + _GAP)
        bottom = height - _TOP - (row + 1) * (_TITLE + _HEIGHT) - row * _GAP
        axes = add_axes(figure, (left, bottom, wide, _HEIGHT))
        is_lowest = index + columns >= len(chart.panels)
        _draw(axes, chart, panel, has_x=is_lowest, has_y=column == 0)
    figure.text(4 / width, 1 - 14 / height, chart.y.label, color=placeholder("muted"), fontsize=SMALL)
    figure.text(1 - 16 / width, 8 / height, chart.x.label, ha="right", color=placeholder("muted"), fontsize=SMALL)
    return figure


def _draw(axes: "Axes", chart: PanelChart, panel: Panel, *, has_x: bool, has_y: bool) -> None:
    axes.set_yscale("log" if chart.y.is_log else "linear")
    low, middle, high = panel.low, panel.middle, panel.high
    if chart.y.is_log:  # far below the edge, not at it: a curve is to leave the panel, not to run along its bottom
        low, middle, high = ([max(value, 0.01 * chart.least) for value in values] for values in (low, middle, high))
    colour = placeholder(_SHADE)
    axes.fill_between(panel.x, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(panel.x, middle, color=colour, linewidth=2.0, solid_capstyle="round")
    if panel.mark is not None:
        axes.axvline(panel.mark, color=placeholder("muted"), linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_xlim(0, max(max(each.x) for each in chart.panels))
    axes.set_ylim(chart.least if chart.y.is_log else 0, max(max(each.high) for each in chart.panels))
    format_axis(axes.xaxis, chart.x, 2)
    format_axis(axes.yaxis, chart.y, 4)
    axes.tick_params(labelbottom=has_x, labelleft=has_y)
    axes.grid(axis="y", color=placeholder("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.annotate(panel.name, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points",
                  color=placeholder("ink"), fontsize=SIZE)  # fmt: skip
