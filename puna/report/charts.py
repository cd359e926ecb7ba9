"""A figure from numbers, drawn by matplotlib as SVG whose text stays text.

A chart is data; `draw_chart` draws it at a width, so that a page can hold a wide and a narrow form of the same numbers.
Style after Tufte, The Visual Display of Quantitative Information (1983): no boxes, a thin grid, names beside the data.
"""

import io
import warnings
from typing import TYPE_CHECKING

from markupsafe import Markup

from puna.report.axes import SIZE, Axis, Reference
from puna.report.bars import BarChart, Bars, draw_bars
from puna.report.curves import LineChart, ScatterChart, Series, draw_curves
from puna.report.heat import HeatMap, draw_heat
from puna.report.intervals import Interval, IntervalChart, draw_intervals
from puna.report.panels import Panel, PanelChart, draw_panels
from puna.report.svg import embed_svg, in_colours, series_shade

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Axis",
    "BarChart",
    "Bars",
    "Chart",
    "HeatMap",
    "Interval",
    "IntervalChart",
    "LineChart",
    "Panel",
    "PanelChart",
    "Reference",
    "ScatterChart",
    "Series",
    "draw_chart",
    "draw_slide",
    "legend",
]

Chart = LineChart | ScatterChart | BarChart | HeatMap | PanelChart | IntervalChart


def draw_chart(chart: Chart, *, width: int, prefix: str, title: str) -> Markup:
    """Draw a chart as inline SVG.

    Args:    width: in CSS pixels, at which text has its natural size; prefix: of its ids; title: for screen readers.
    """
    import matplotlib

    with (
        matplotlib.rc_context(
            {"svg.fonttype": "none", "svg.hashsalt": "puna", "font.size": SIZE, "text.parse_math": False}
        ),
        warnings.catch_warnings(),
    ):
        # The page's fonts draw the text, so it is no loss that matplotlib's own font lacks a character.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = _draw(chart, width)
        file = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return embed_svg(file.getvalue(), prefix, title)


def draw_slide(chart: Chart, *, title: str, width: int = 720) -> str:
    """A chart as an SVG file of its own, in the light page's colours, for a slide."""
    return in_colours(draw_chart(chart, width=width, prefix="slide", title=title), title)


def legend(chart: Chart) -> tuple[tuple[str, str], ...]:
    """(colour name, text) of each series, where there are several to tell apart."""
    if isinstance(chart, HeatMap | PanelChart | IntervalChart):
        return ()
    names = [series.name for series in chart.series]
    return tuple((series_shade(index), name) for index, name in enumerate(names)) if len(names) > 1 else ()


def _draw(chart: Chart, width: int) -> "Figure":
    if isinstance(chart, BarChart):
        return draw_bars(chart, width)
    if isinstance(chart, HeatMap):
        return draw_heat(chart, width)
    if isinstance(chart, IntervalChart):
        return draw_intervals(chart, width)
    return draw_panels(chart, width) if isinstance(chart, PanelChart) else draw_curves(chart, width)
