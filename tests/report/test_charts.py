import re
import warnings
from xml.etree import ElementTree

import pytest

from puna.report.bars import _levels
from puna.report.charts import (
    Axis,
    BarChart,
    Bars,
    Chart,
    HeatMap,
    LineChart,
    Panel,
    PanelChart,
    Reference,
    ScatterChart,
    Series,
    draw_chart,
    legend,
)
from puna.report.curves import _averaged, _shifts

LINES = LineChart(
    x=Axis(label="读过的词元", form="count"),
    y=Axis(label="nats & $bits$ <b>"),
    series=(
        Series(name="训练", x=range(100), y=[9 - i / 20 for i in range(100)], average_over=5),
        Series(name="held-out", x=(10, 90), y=(8.8, 4.7)),
    ),
    references=(Reference(label="token\x00unigram", value=6.0),),
)
POINTS = ScatterChart(
    x=Axis(label="size", form="bytes"),
    y=Axis(label="added", is_log=True),
    series=(
        Series(name="plain", x=(1e6, 2e6), y=(0.5, 0.01), spread=(0.1, 0.02), names=("60 %", "80 %")),
        Series(name="int8", x=(5e5,), y=(0.002,)),
    ),
)
GROUPS = BarChart(
    axis=Axis(label="nats"),
    categories=("新", "old"),
    series=(Bars(name="before", values=(4.0, 3.0)), Bars(name="after", values=(3.5, -0.2))),
)
STACK = BarChart(
    axis=Axis(label="bytes", form="bytes"),
    categories=("planned", "measured"),
    series=(Bars(name="weights", values=(1e6, 0)), Bars(name="peak", values=(2e6, 4e6))),
    is_stacked=True,
    references=(Reference(label="card", value=8e6),),
)
HEAT = HeatMap(
    rows=("q, k, v", "向下"),
    columns=[str(layer) for layer in range(4)],
    values=((0.5, 0.25, None, 1.0), (0.0, 0.75, 0.5, 0.5)),
    columns_label="layer",
    key="numbers kept",
    whole="dense",
)
PANELS = PanelChart(
    x=Axis(label="kept", form="percent"),
    y=Axis(label="left", form="percent", is_log=True),
    panels=[
        Panel(name=f"kind {index}", x=(0, 0.5, 1), low=(1, 0.1, 0), middle=(1, 0.2, 0), high=(1, 0.4, 0), mark=0.6)
        for index in range(7)
    ],
)
CHARTS = {"lines": LINES, "points": POINTS, "groups": GROUPS, "stack": STACK, "heat": HEAT, "panels": PANELS}
ALL = pytest.mark.parametrize("chart", CHARTS.values(), ids=list(CHARTS))


def draw(chart: Chart, width: int = 720, prefix: str = "f") -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return draw_chart(chart, width=width, prefix=prefix, title="a title")


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter("text")]


@ALL
def test_bytes_depend_on_the_data_alone(chart: Chart) -> None:
    assert draw(chart) == draw(chart)


@ALL
def test_only_the_pages_colours_are_used(chart: Chart) -> None:
    assert not re.search(r"#[0-9a-f]{6}|rgb\(", draw(chart))


@ALL
def test_two_charts_of_a_page_share_no_id(chart: Chart) -> None:
    first, second = (set(re.findall(r'id="([^"]+)"', draw(chart, prefix=prefix))) for prefix in ("a", "b"))
    assert not first & second


@ALL
def test_every_reference_to_an_id_finds_it(chart: Chart) -> None:
    svg = draw(chart)
    assert set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg)) == set(re.findall(r'\bid="([^"]+)"', svg))


@ALL
def test_a_narrow_chart_is_as_wide_as_asked(chart: Chart) -> None:
    assert 'viewBox="0 0 360 ' in draw(chart, width=360)


def test_text_stays_text_whatever_its_characters() -> None:
    written = texts(draw(LINES))
    assert {"读过的词元", "nats & $bits$ <b>", "训练", "held-out", "token␀unigram"} <= set(written)


def test_series_are_named_beside_the_data_where_there_is_room_and_in_the_legend_elsewhere() -> None:
    assert "held-out" in texts(draw(LINES))
    assert "held-out" not in texts(draw(LINES, width=360))
    assert legend(LINES) == (("series-0", "训练"), ("series-1", "held-out"))


def test_points_carry_their_names_and_ticks_their_units() -> None:
    written = texts(draw(POINTS))
    assert {"60 %", "80 %", "plain", "int8", "1 MB", "0.01"} <= set(written)


def test_what_a_logarithm_cannot_hold_is_drawn_on_its_floor() -> None:
    points = (
        Series(name="s", x=(1, 2, 3), y=(0.5, 0.0, -0.1), spread=(0.1, 0.01, 0.2)),
        Series(name="t", x=(1,), y=(0,)),
    )
    chart = ScatterChart(x=Axis(label="x"), y=Axis(label="y", is_log=True), series=points, floor=0.001)
    assert {"0.001", "0.1", "s", "t"} <= set(texts(draw(chart)))


def test_cells_carry_their_percent_where_there_is_room() -> None:
    assert {"50", "25", "75", "100", "q, k, v", "向下", "0", "3", "layer", "dense"} <= set(texts(draw(HEAT)))
    many = HeatMap(
        rows=("up",), columns=[str(layer) for layer in range(126)], values=([0.33] * 126,), columns_label="layer",
        key="kept", whole="dense",
    )  # fmt: skip
    written = texts(draw(many))
    assert "33" not in set(written) - set(many.columns)
    assert {"0", "120"} & set(written)
    assert sum(text in many.columns for text in written) < 60  # not every layer's number has room


def test_each_panel_has_its_name_and_the_outer_ones_their_ticks() -> None:
    written = texts(draw(PANELS))
    assert {f"kind {index}" for index in range(7)} <= set(written)
    assert (written.count("100 %"), written.count("0.1 %")) == (2 + 4, 2)


def test_a_stack_ends_with_its_total() -> None:
    assert {"3 MB", "4 MB", "planned", "measured", "card"} <= set(texts(draw(STACK)))


def test_grouped_bars_carry_their_values() -> None:
    assert {"4.00", "3.50", "3.00", "−0.200", "新", "old"} <= set(texts(draw(GROUPS)))


def test_one_series_needs_no_legend() -> None:
    assert legend(HEAT) == legend(PANELS) == ()
    assert legend(BarChart(axis=Axis(label="x"), categories=("a",), series=(Bars(name="s", values=(1,)),))) == ()


def test_the_running_mean_keeps_a_constant_and_a_slope() -> None:
    assert _averaged(Series(name="s", x=range(5), y=[2.0] * 5, average_over=3)) == [2.0] * 5
    assert _averaged(Series(name="s", x=range(5), y=range(5), average_over=3)) == [0.5, 1, 2, 3, 3.5]


def test_labels_keep_their_distance_and_their_order() -> None:
    heights = [10.0, 12.0, 100.0, 11.0]
    placed = [height + shift for height, shift in zip(heights, _shifts(heights, 16), strict=True)]
    assert placed == [10, 42, 100, 26]


def test_labels_that_touch_stand_in_different_rows() -> None:
    assert _levels([(10, 20), (25, 20), (50, 10), (52, 10)]) == [0, 1, 0, 1]
