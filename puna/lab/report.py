"""The page of a study: verdicts first, then the arms, how they learned, and what else was measured; and its charts as files."""

import math
from collections.abc import Mapping, Sequence

from puna.files import write_text
from puna.jobs.run_folder import RunFolder
from puna.jobs.run_report import write_run_report
from puna.lab.arm_run import ArmRun
from puna.lab.result import ArmResult, StudyResult
from puna.lab.study import Study
from puna.report.charts import Axis, Chart, Interval, IntervalChart, LineChart, ScatterChart, Series, draw_slide
from puna.report.labels import label, phrase
from puna.report.numbers import human_bytes, human_count, human_number, human_percent, human_seconds
from puna.report.page import Figure, Section, Table

__all__ = ["measure_rows", "sentence", "study_rows", "write_study_report"]

_BY_LAYER, _TOKENS_END = "_by_layer", "_by_tokens"
_BY_TOKENS = ("nats_to", "attention_milliseconds")  # families of measures, one at each length
_LISTED = (
    *("gradient_norm", "largest_gradient_norm", "update_norm", "score_variance", "attention_entropy", "dead_units"),
)
_SHARES = ("norm_share_of_step", "dead_units", "attended_share", "attention_entropy")


def write_study_report(
    folder: RunFolder,
    study: Study,
    result: StudyResult,
    runs: Mapping[str, Sequence[ArmRun]],
    step_seconds: Mapping[str, float],
    lang: str = "en",
) -> None:
    """Write report.html and, for each of its charts, an SVG file in charts/. Errors: DiskFull.

    Args: runs: of each arm, one a seed; step_seconds: of each arm.
    """
    pictures = {
        **_differences(lang, result),
        **_curves(lang, runs, step_seconds),
        **_by_layer(lang, study, result),
        **_by_tokens(lang, study, result),
        **_by_size(lang, study, result),
    }
    for name, figure in pictures.items():
        assert isinstance(figure.content, Chart)
        write_text(folder.path / "charts" / f"{name}.svg", draw_slide(figure.content, title=figure.caption))
    sections = [
        _verdicts(lang, result, pictures), _arms(lang, result), _learning(lang, pictures),
        _measures(lang, study, result, pictures),
    ]  # fmt: skip
    write_run_report(folder, "lab", study_rows(result, lang), sections, lang)


def study_rows(result: StudyResult, lang: str = "en") -> list[tuple[str, str]]:
    """The study as lines for people."""
    return [
        (label(lang, "lab.row.arms"), str(len(result.arms))),
        (label(lang, "lab.row.seeds"), str(result.seeds)),
        (label(lang, "lab.row.steps"), f"{result.steps:,}"),
        (label(lang, "lab.row.tokens"), human_count(result.tokens)),
        (label(lang, "lab.row.text"), human_bytes(result.text_bytes)),
        (label(lang, "run.row.time"), human_seconds(result.seconds)),
    ]


def sentence(arm: ArmResult, lang: str = "en") -> str:
    """What was found of an arm, for a student to quote; empty for one that others are compared with."""
    found = arm.comparison
    if found is None:
        return ""
    return label(
        lang, f"lab.sentence.{found.verdict}", arm=_called(lang, arm.name), against=_called(lang, found.against),
        nats=f"{abs(found.added_nats):.3f}", reason=_reason(lang, arm.diverged), lost=arm.lost,
        signed=f"{found.added_nats:+.3f}", low=f"{found.low:+.3f}", high=f"{found.high:+.3f}", seeds=len(found.by_seed),
    )  # fmt: skip


def _called(lang: str, name: str) -> str:
    """An arm's name; its parts stand between commas."""
    return label(lang, "page.comma").join(phrase(lang, "lab.arm", part) for part in name.split(", "))


def _reason(lang: str, diverged: str | None) -> str:
    """Why an arm diverged; where its rows were read is left to the study's record."""
    return "" if diverged is None else phrase(lang, "lab.reason", diverged.partition("; ")[0])


def _differences(lang: str, result: StudyResult) -> dict[str, Figure]:
    """By the names of their files, as all charts."""
    rows = [
        Interval(
            name=label(lang, "lab.against", arm=_called(lang, arm.name), against=_called(lang, found.against)),
            mean=found.added_nats, low=found.low, high=found.high, dots=found.by_seed,
            is_clear=found.verdict in ("better", "worse"),
        )
        for arm in result.arms if (found := arm.comparison) is not None and found.by_seed
    ]  # fmt: skip
    chart = IntervalChart(axis=Axis(label=label(lang, "lab.axis.added")), rows=rows)
    return {"differences": Figure(content=chart, caption=label(lang, "lab.differences"))} if rows else {}


def _verdicts(lang: str, result: StudyResult, pictures: Mapping[str, Figure]) -> Section:
    words = [words for arm in result.arms if (words := sentence(arm, lang))]
    title = label(lang, f"lab.title.{result.study}")
    words += [label(lang, "lab.verdicts_words"), label(lang, "lab.slides", folder="charts/")]
    return Section(title=title, words=words, items=[pictures[name] for name in pictures if name == "differences"])


def _arms(lang: str, result: StudyResult) -> Section:
    names = ("arm", "parameters", "rate", "nats", "speed", "equal_seconds")
    columns = tuple(label(lang, f"lab.column.{name}") for name in names)
    rows = []
    for arm in result.arms:
        equal = arm.measures.get("nats_at_equal_seconds", math.nan)
        nats = f"{arm.validation_nats:.3f}" + ("" if math.isnan(arm.spread) else f" ± {arm.spread:.3f}")
        is_whole = arm.diverged is None
        rows.append((
            _called(lang, arm.name), f"{arm.parameters:,}", f"{arm.learning_rate:g}",
            nats if is_whole else label(lang, "lab.diverged"), human_number(arm.tokens_per_second),
            f"{equal:.3f}" if isinstance(equal, float) and is_whole else "",
        ))  # fmt: skip
    rates = list(result.arms[0].rates)
    tried = [(_called(lang, arm.name), *(_nats(lang, arm.rates[rate]) for rate in rates)) for arm in result.arms]
    at_edge = [arm for arm in result.arms if len(rates) > 1 and f"{arm.learning_rate:g}" in (rates[0], rates[-1])]
    edge = label(lang, "page.comma").join(_called(lang, arm.name) for arm in at_edge)
    words = [label(lang, "lab.arms_words"), *([label(lang, "lab.edge", arms=edge)] if edge else ())]
    return Section(
        title=label(lang, "lab.arms"),
        words=words,
        items=(
            Table(columns=columns, rows=rows, caption=label(lang, "lab.arms_caption")),
            Table(columns=(label(lang, "lab.column.arm"), *rates), rows=tried, caption=label(lang, "lab.rates")),
        ),
    )


def _nats(lang: str, nats: float) -> str:
    return f"{nats:.3f}" if math.isfinite(nats) else label(lang, "lab.diverged")


def _curves(lang: str, runs: Mapping[str, Sequence[ArmRun]], step_seconds: Mapping[str, float]) -> dict[str, Figure]:
    first = {name: each[0].curve for name, each in runs.items()}

    def chart(x: str) -> Figure:
        scale = step_seconds if x == "seconds" else dict.fromkeys(first, 1.0)
        series = [
            Series(name=_called(lang, name), x=[point.steps * scale[name] for point in curve],
                   y=[point.nats for point in curve])
            for name, curve in first.items() if curve
        ]  # fmt: skip
        across, up = (Axis(label=label(lang, f"lab.axis.{name}")) for name in (x, "nats"))
        return Figure(content=LineChart(x=across, y=up, series=series), caption=label(lang, f"lab.curves_{x}"))

    return {f"nats-by-{x}": chart(x) for x in ("steps", "seconds")} if any(first.values()) else {}


def _learning(lang: str, pictures: Mapping[str, Figure]) -> Section:
    items = [figure for name, figure in pictures.items() if name.startswith("nats-by-")]
    return Section(title=label(lang, "lab.curves"), items=items)


def _by_layer(lang: str, study: Study, result: StudyResult) -> dict[str, Figure]:
    """What the study shows of each layer, a line for each arm."""
    pictures = {}
    for name in (name for name in study.shown if name.endswith(_BY_LAYER)):
        series = [
            Series(name=_called(lang, arm.name), x=range(len(values)), y=values)
            for arm in result.arms if isinstance(values := arm.measures.get(name), list)
        ]  # fmt: skip
        is_log = name == f"gradient_norm{_BY_LAYER}"
        across = Axis(label=label(lang, "lab.axis.layer"))
        up = Axis(label=label(lang, f"lab.measure.{name}"), is_log=is_log)
        if series:
            chart = LineChart(x=across, y=up, series=series)
            pictures[name.replace("_", "-")] = Figure(content=chart, caption=label(lang, f"lab.measured.{name}"))
    return pictures


def _by_tokens(lang: str, study: Study, result: StudyResult) -> dict[str, Figure]:
    """What the study shows at several lengths, a line for each arm."""
    pictures = {}
    for family in _BY_TOKENS:
        lengths = [int(name.rpartition("_")[2]) for name in study.shown if name.startswith(family)]
        series = []
        for arm in result.arms:
            found = [(tokens, arm.measures.get(f"{family}_{tokens}")) for tokens in lengths]
            points = [(tokens, value) for tokens, value in found if isinstance(value, float)]
            if points:
                name = _called(lang, arm.name)
                series.append(Series(name=name, x=[x for x, _ in points], y=[y for _, y in points]))
        is_time = family == "attention_milliseconds"
        across = Axis(label=label(lang, "lab.axis.tokens"), is_log=True)
        up = Axis(label=label(lang, f"lab.axis.{family}"), is_log=is_time)
        if series:
            chart = LineChart(x=across, y=up, series=series)
            pictures[f"{family}{_TOKENS_END}".replace("_", "-")] = Figure(
                content=chart, caption=label(lang, f"lab.measured.{family}")
            )
    return pictures


def _by_size(lang: str, study: Study, result: StudyResult) -> dict[str, Figure]:
    """Of arms of different sizes the loss against parameters and FLOPs a token; those of equal training FLOPs are joined."""
    if not study.compares_sizes:
        return {}
    groups: dict[str, list[ArmResult]] = {}
    for arm in (arm for arm in result.arms if arm.diverged is None):
        flops = 3 * float(str(arm.measures["flops_per_token"])) * result.tokens * study.arm(arm.name).share
        groups.setdefault(label(lang, "lab.training_flops", flops=f"{flops:.1e}"), []).append(arm)
    pictures = {}
    for name in ("parameters", "flops_per_token"):
        series = [
            Series(
                name=group, x=[_size(arm, name) for arm in arms], y=[arm.validation_nats for arm in arms],
                spread=[0.0 if math.isnan(arm.spread) else arm.spread for arm in arms],
                names=[_called(lang, arm.name) for arm in arms],
            )
            for group, arms in groups.items()
        ]  # fmt: skip
        x, y = Axis(label=label(lang, f"lab.size.{name}"), form="count", is_log=True), label(lang, "lab.axis.nats")
        chart = ScatterChart(x=x, y=Axis(label=y), series=series)
        caption = label(lang, f"lab.measured.{name}")
        pictures[f"nats-by-{name.replace('_', '-')}"] = Figure(content=chart, caption=caption)
    return pictures


def _size(arm: ArmResult, name: str) -> float:
    return float(arm.parameters if name == "parameters" else str(arm.measures[name]))


def measure_rows(study: Study, result: StudyResult, lang: str = "en") -> tuple[list[str], list[list[str]]]:
    """What was measured beside the loss: columns, and a row for each arm. Left out is what no arm has."""
    wanted = dict.fromkeys((*_LISTED, *(name for name in study.shown if not name.endswith(_BY_LAYER))))
    there = [name for name in wanted if any(_measure(name, arm) for arm in result.arms)]
    columns = [label(lang, "lab.column.arm"), *(_measure_name(lang, name) for name in there)]
    return columns, [[_called(lang, arm.name), *(_measure(name, arm) for name in there)] for arm in result.arms]


def _measures(lang: str, study: Study, result: StudyResult, pictures: Mapping[str, Figure]) -> Section:
    columns, rows = measure_rows(study, result, lang)
    table = Table(columns=columns, rows=rows, caption=label(lang, "lab.measures_caption"))
    ends = tuple(end.replace("_", "-") for end in (_BY_LAYER, _TOKENS_END))
    drawn = [figure for name, figure in pictures.items() if name.endswith(ends)]
    return Section(title=label(lang, "lab.measures"), items=(*drawn, table))


def _measure_name(lang: str, name: str) -> str:
    for family in _BY_TOKENS:
        if name.startswith(f"{family}_"):
            return label(lang, f"lab.measure.{family}", tokens=f"{int(name.rpartition('_')[2]):,}")
    return label(lang, f"lab.measure.{name}")


def _measure(name: str, arm: ArmResult) -> str:
    value = arm.measures.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    if name in _SHARES:
        return human_percent(value)
    return human_count(value) if name == "flops_per_token" else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
