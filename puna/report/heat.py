"""A picture of a table: a cell for each row and column, the darker the larger its share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.report.axes import SIZE, SMALL, canvas
from puna.report.svg import placeholder, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["HeatMap", "draw_heat"]

_CELL, _GAP = 26, 1.5  # pixels
_NUMBERED = 32  # the narrowest cell that has room for its number
_SWATCH = 34  # of the key, without its name
_KEY = (0.2, 0.4, 0.6, 0.8)
_SHADE = "series-0"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Shares from 0 to 1 as cells; None is a cell of its own kind, full and marked by a dot, which `whole` names.

    columns_label, key: what the columns are, and what the shares are of.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    columns_label: str
    key: str
    whole: str

    def __post_init__(self) -> None:
        assert self.columns
        assert len(self.values) == len(self.rows) >= 1
        assert all(len(row) == len(self.columns) for row in self.values)


def draw_heat(chart: HeatMap, width: int) -> "Figure":
    """Draw the cells as wide as there is room; numbers, in percent, stand in cells that can hold them."""
    left = 10 + max(text_width(name, SIZE) for name in chart.rows)
    pitch = (width - left - 2) / len(chart.columns)
    height = _CELL * len(chart.rows)
    entries = _key_entries(chart)
    key_width = 14 + text_width(chart.key, SMALL) + sum(_SWATCH + text_width(name, SMALL) for name, _ in entries)
    is_long = key_width > width - left - 2
    bottom = 100 if is_long else 80
    figure, axes = canvas(width, 4 + height + bottom, left=left, right=2, top=4, bottom=bottom)
    axes.set_xlim(0, pitch * len(chart.columns))
    axes.set_ylim(height, 0)
    for row, values in enumerate(chart.values):
        for column, value in enumerate(values):
            _cell(axes, pitch * column, _CELL * row, pitch, value, has_number=pitch >= _NUMBERED)
    every = -(-max(text_width(name, SMALL) + 8 for name in chart.columns) // pitch)
    shown = range(0, len(chart.columns), int(every))
    axes.set_xticks([pitch * (column + 0.5) for column in shown], [chart.columns[column] for column in shown])
    axes.set_yticks([_CELL * (row + 0.5) for row in range(len(chart.rows))], chart.rows)
    axes.tick_params(axis="y", colors=placeholder("ink"), labelsize=SIZE)
    axes.annotate(chart.columns_label, (1, 0), (0, -36), xycoords="axes fraction", textcoords="offset points",
                  ha="right", color=placeholder("muted"), fontsize=SMALL)  # fmt: skip
    _draw_key(axes, chart.key, entries, height + 54, -left if is_long else None)
    return figure


def _key_entries(chart: HeatMap) -> list[tuple[str, float | None]]:
    return [*((f"{value:.0%}".replace("%", " %"), value) for value in _KEY), (chart.whole, None)]


def _draw_key(
    axes: "Axes", title: str, entries: Sequence[tuple[str, float | None]], top: float, edge: float | None
) -> None:
    """What the shades stand for, in a line below the cells. Args: edge: where two lines begin, if one is too short."""
    axes.annotate(title, (0 if edge is None else edge, top + 9), va="center", color=placeholder("muted"),
                  fontsize=SMALL, annotation_clip=False)  # fmt: skip
    x, top = (14 + text_width(title, SMALL), top) if edge is None else (edge, top + 22)
    for name, value in entries:
        _cell(axes, x, top, 18, value, size=18, has_number=False)
        axes.annotate(name, (x + 22, top + 9), va="center", color=placeholder("muted"), fontsize=SMALL,
                      annotation_clip=False)  # fmt: skip
        x += _SWATCH + text_width(name, SMALL)


def _cell(
    axes: "Axes", x: float, y: float, width: float, value: float | None, *, size: float = _CELL, has_number: bool
) -> None:
    from matplotlib.patches import Circle, Rectangle

    gap = min(_GAP, 0.1 * width)
    alpha = 1.0 if value is None else 0.06 + 0.94 * value
    axes.add_patch(Rectangle((x + gap / 2, y + gap / 2), width - gap, size - gap, linewidth=0, clip_on=False,
                             facecolor=placeholder(_SHADE), alpha=alpha))  # fmt: skip
    middle = (x + width / 2, y + size / 2)
    if value is None:
        axes.add_patch(Circle(middle, min(3.5, 0.28 * width), facecolor=placeholder("paper"), linewidth=0,
                              clip_on=False))  # fmt: skip
    elif has_number:
        axes.annotate(f"{100 * value:.0f}", middle, ha="center", va="center", fontsize=SMALL,
                      color=placeholder("paper" if alpha > 0.7 else "ink"))  # fmt: skip
