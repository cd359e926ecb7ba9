"""The page of a frontier: what to take, size and speed against added nats, what each lever gave, ranks and spectra."""

from collections.abc import Mapping, Sequence

from puna.jobs.factoring import Factored
from puna.jobs.frontier_result import LIMIT_NATS, Ablated, FrontierPoint, FrontierResult, nats_text, verdict
from puna.jobs.low_rank_report import kept_figure, spectra_section
from puna.jobs.run_folder import RunFolder
from puna.jobs.run_report import write_run_report
from puna.report.axes import Axis, Reference
from puna.report.bars import BarChart, Bars
from puna.report.curves import ScatterChart, Series
from puna.report.labels import label
from puna.report.numbers import NumberFormat, human_bytes, human_number, human_percent, human_seconds
from puna.report.page import Commands, Fact, Facts, Figure, Item, Section, Table

__all__ = ["frontier_sections", "write_frontier_report"]

_LEAST_NATS = 0.0001  # what adds less is drawn here: a logarithm has no zero


def write_frontier_report(
    folder: RunFolder, result: FrontierResult, factored: Mapping[str, Factored | None], lang: str = "en"
) -> None:
    """Write a frontier's page. Args: factored: by the name of each point, None where it is no low rank. Errors: DiskFull."""
    rows = [
        (label(lang, "frontier.row.bytes"), human_bytes(result.original.bytes)),
        (label(lang, "frontier.row.nats"), human_number(result.original.nats_per_token)),
        (label(lang, "frontier.row.tried"), str(len(result.frontier))),
        (label(lang, "run.row.peak"), human_bytes(result.peak_bytes)),
        (label(lang, "run.row.time"), human_seconds(result.seconds)),
    ]
    write_run_report(folder, "frontier", rows, frontier_sections(result, factored, lang), lang)


def frontier_sections(
    result: FrontierResult, factored: Mapping[str, Factored | None], lang: str = "en"
) -> list[Section]:
    """Everything below the result's own table."""
    sections = [_advice(lang, result), _tradeoff(lang, result)]
    if result.ablation:
        sections.append(_levers(lang, result.ablation))
    name, shown = _pictured(result, factored)
    words = (label(lang, "frontier.kept_words", name=name),)
    sections.append(Section(title=label(lang, "run.ranks.title"), words=words, items=(kept_figure(lang, shown),)))
    return [*sections, spectra_section(lang, shown)]


def _advice(lang: str, result: FrontierResult) -> Section:
    items: list[Item] = []
    best, before = result.recommended, result.original
    if best is not None and result.command is not None:
        ratio = best.decode_tokens_per_second / before.decode_tokens_per_second
        interval = _interval(best)
        facts = (
            Fact(label=label(lang, "frontier.fact.bytes"), value=human_bytes(best.bytes),
                 note=label(lang, "frontier.fact.bytes_note", bytes=human_bytes(before.bytes))),
            Fact(label=label(lang, "frontier.fact.added"), value=nats_text(best.added_nats),
                 note=label(lang, "frontier.fact.added_note", interval=interval)),
            Fact(label=label(lang, "frontier.fact.speed"), value=f"{ratio:.2f} ×",
                 note=label(lang, "frontier.fact.speed_note")),
        )  # fmt: skip
        items = [Facts(facts=facts), Commands(commands=((result.command, label(lang, "frontier.command")),))]
    rule = label(lang, "frontier.rule", limit=f"{LIMIT_NATS:g}")
    return Section(title=label(lang, "frontier.advice"), words=(verdict(result, lang), rule), items=items)


def _tradeoff(lang: str, result: FrontierResult) -> Section:
    """Added nats over the size and over the speed, and the numbers of both."""
    sizes = _scatter(lang, result, "bytes", "bytes")
    speeds = _scatter(lang, result, "decode_tokens_per_second", "number")
    return Section(
        title=label(lang, "frontier.title"),
        words=(label(lang, "frontier.words"),),
        items=(
            Figure(content=sizes, caption=label(lang, "frontier.size_caption", least=f"{_LEAST_NATS:.4f}")),
            Figure(content=speeds, caption=label(lang, "frontier.speed_caption", least=f"{_LEAST_NATS:.4f}")),
            _table(lang, result),
        ),
    )


def _scatter(lang: str, result: FrontierResult, field: str, form: NumberFormat) -> ScatterChart:
    methods = dict.fromkeys(point.method for point in result.frontier)
    series = []
    for method in methods:
        points = [point for point in result.frontier if point.method == method]
        series.append(
            Series(
                name=method,
                x=[getattr(point, field) for point in points],
                y=[point.added_nats for point in points],
                spread=[(point.high - point.low) / 2 for point in points],
                names=["" if point.keep is None else human_percent(point.keep) for point in points],
            )
        )
    series.append(Series(name=label(lang, "frontier.original"), x=[getattr(result.original, field)], y=[0.0]))
    return ScatterChart(
        x=Axis(label=label(lang, f"frontier.axis.{field}"), form=form),
        y=Axis(label=label(lang, "frontier.axis.added"), is_log=True),
        series=series,
        references=(Reference(label=label(lang, "frontier.limit", limit=f"{LIMIT_NATS:g}"), value=LIMIT_NATS),),
        floor=_LEAST_NATS,
        is_joined=field == "bytes",
    )


def _table(lang: str, result: FrontierResult) -> Table:
    before = result.original
    whole = (label(lang, "frontier.original"), human_bytes(before.bytes), human_percent(1.0), "", "")
    rows: list[tuple[str, ...]] = [
        (*whole, _number(before.decode_tokens_per_second), _number(before.prefill_tokens_per_second))
    ]
    rows += [_cells(point) for point in result.frontier]
    columns = ("name", "bytes", "share", "added", "interval", "decode", "prefill")
    strong = [] if result.recommended is None else [1 + result.frontier.index(result.recommended)]
    return Table(
        columns=[label(lang, f"frontier.column.{name}") for name in columns],
        rows=rows,
        caption=label(lang, "frontier.table_caption"),
        strong_rows=strong,
    )


def _cells(point: FrontierPoint) -> tuple[str, ...]:
    speeds = _number(point.decode_tokens_per_second), _number(point.prefill_tokens_per_second)
    interval = _interval(point)
    return (
        point.name,
        human_bytes(point.bytes),
        human_percent(point.share),
        nats_text(point.added_nats),
        interval,
        *speeds,
    )


def _interval(row: FrontierPoint | Ablated) -> str:
    return f"{nats_text(row.low)} … {nats_text(row.high)}"


def _number(value: float) -> str:
    """A speed: three digits are more than a second measurement would agree on."""
    return human_number(float(f"{value:.3g}"))


def _levers(lang: str, ablation: Sequence[Ablated]) -> Section:
    """One row for each lever, the same share kept by all."""
    names = [label(lang, _lever(row)) for row in ablation]
    chart = BarChart(
        axis=Axis(label=label(lang, "frontier.axis.added")),
        categories=names,
        series=(Bars(name="", values=[row.added_nats for row in ablation]),),
    )
    rows = []
    for name, row, before in zip(names, ablation, [None, *ablation], strict=False):
        saved = "" if before is None else nats_text(row.added_nats - before.added_nats)
        rows.append((name, nats_text(row.added_nats), _interval(row), saved))
    columns = ("lever", "added", "interval", "saved")
    table = Table(columns=[label(lang, f"lever.column.{name}") for name in columns], rows=rows)
    words = label(lang, "lever.words", keep=human_percent(ablation[0].keep))
    figure = Figure(content=chart, caption=label(lang, "lever.caption"))
    return Section(title=label(lang, "lever.title"), words=(words,), items=(figure, table))


def _lever(row: Ablated) -> str:
    return f"lever.{row.method}_{row.allocation}" if row.training == "none" else f"lever.{row.training}"


def _pictured(result: FrontierResult, factored: Mapping[str, Factored | None]) -> tuple[str, Factored]:
    """The low rank whose ranks are shown: the recommended one, else that of the method's middle size."""
    if result.recommended is not None and (found := factored[result.recommended.name]) is not None:
        return result.recommended.name, found
    first = result.frontier[0].method
    low_rank = [
        (point.name, found) for point in result.frontier if point.method == first and (found := factored[point.name])
    ]
    return low_rank[len(low_rank) // 2]
