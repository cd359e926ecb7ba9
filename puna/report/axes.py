"""What every chart stands on: an empty canvas in pixels, and an axis whose numbers people can read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from puna.report.numbers import NumberFormat, in_format
from puna.report.svg import placeholder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as PlotAxis
    from matplotlib.figure import Figure

__all__ = ["SIZE", "SMALL", "WIDE", "Axis", "Reference", "add_axes", "blank", "canvas", "format_axis"]

SIZE, SMALL = 13, 12  # of text, in pixels
WIDE = 560  # from this width on names stand beside the data; below it they stand in the page's legend


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What an axis counts and how its numbers are written."""

    label: str
    form: NumberFormat = "number"
    is_log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A value to compare with, drawn as a dashed line: horizontal among points, vertical among bars."""

    label: str
    value: float


def canvas(width: int, height: int, *, left: float, right: float, top: float, bottom: float) -> tuple["Figure", "Axes"]:
    """A figure of so many CSS pixels with one bare pair of axes inside these margins."""
    figure = blank(width, height)
    return figure, add_axes(figure, (left, bottom, width - left - right, height - top - bottom))


def blank(width: int, height: float) -> "Figure":
    """An empty figure of so many CSS pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72)  # so that a point is a pixel


def add_axes(figure: "Figure", box: tuple[float, float, float, float]) -> "Axes":
    """A bare pair of axes. Args: box: left, bottom, width and height in CSS pixels."""
    width, height = (72 * float(side) for side in figure.get_size_inches())
    axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=6, colors=placeholder("muted"), labelsize=SMALL, which="both")
    return axes


def format_axis(plot_axis: "PlotAxis", axis: Axis, ticks: int) -> None:
    """Ticks at round values, about this many, written in the axis's form."""
    from matplotlib import ticker

    low, high = sorted(plot_axis.get_view_interval())
    if axis.is_log:
        is_short = high / low < 300
        plot_axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if is_short else (1,), numticks=2 * ticks))
        plot_axis.set_minor_locator(ticker.NullLocator())
    else:
        plot_axis.set_major_locator(ticker.MaxNLocator(ticks, steps=(1, 2, 2.5, 5, 10)))
    plot_axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _tick(value, axis.form)))


def _tick(value: float, form: NumberFormat) -> str:
    """A tick is a round number: it is written without the zeros that a measured value keeps."""
    return f"{value:,g}".replace("-", "−") if form == "number" and abs(value) < 1e6 else in_format(value, form)
