"""report.html of a run: what came out, in a table, and the sections of its verb; and the page of a run that is not done.

A page is written whole and holds no date: while a run goes on, each checkpoint replaces the last one's page.
"""

import shlex
from collections.abc import Mapping, Sequence

from puna.files import write_text
from puna.jobs.mixing import SourceShare
from puna.jobs.run_folder import RunFolder
from puna.jobs.sections import History, loss_figure, read_history
from puna.report.axes import Axis
from puna.report.bars import BarChart, Bars
from puna.report.labels import label
from puna.report.numbers import human_bytes, human_number, human_percent
from puna.report.page import Commands, Figure, Quote, Section, Table, render_page
from puna.training.checkpoint import TrainState
from puna.training.config import TrainingConfig

__all__ = [
    "learning_sections",
    "peak_row",
    "ranks_section",
    "size_section",
    "source_rows",
    "sources_section",
    "write_run_report",
    "write_unfinished_report",
]


def write_run_report(
    folder: RunFolder, verb: str, rows: Sequence[tuple[str, str]], sections: Sequence[Section], lang: str = "en"
) -> None:
    """Write a run's page. Args: rows: the result as (what, value). Errors: DiskFull."""
    result = Section(title=label(lang, "run.result"), items=(_rows_table(lang, rows),))
    _write(folder, verb, (result, *sections), lang)


def write_unfinished_report(
    folder: RunFolder,
    verb: str,
    state: TrainState,
    config: TrainingConfig,
    sections: Sequence[Section],
    *,
    is_stopped: bool,
    go_on: str | None = None,
    lang: str = "en",
) -> None:
    """Write the page of a run that is not done: how far it is, how to watch it or go on, and what is known so far.

    Args:   go_on: the command that goes on with the run, but for its --lang; None: the verb with --resume.
    Errors: DiskFull.
    """
    kind, share = "stopped" if is_stopped else "running", config.budget.progress(state.done)
    words = label(lang, f"run.{kind}.words", step=f"{state.done.steps:,}", share=human_percent(share))
    path = shlex.quote(str(folder.path.resolve()))
    command = f"puna {verb} --resume --out {path}" if go_on is None else go_on
    resume = command if lang == "en" else f"{command} --lang {lang}"
    commands = [(resume, "resume") if is_stopped else (f"tail -f {path}/metrics.jsonl", "tail")]
    if folder.tensorboard.exists():
        commands.append((f"tensorboard --logdir {path}/tensorboard", "tensorboard"))
    watch = Commands(commands=[(line, label(lang, f"run.{name}")) for line, name in commands])
    rows = _so_far(lang, state)
    notice = Section(title=label(lang, f"run.{kind}.title"), words=(words,), items=(watch, _rows_table(lang, rows)))
    _write(folder, verb, (notice, *sections), lang)


def learning_sections(lang: str, folder: RunFolder) -> tuple[Section, ...]:
    """The loss over the run, held-out text by source where there are several, and samples of what the model wrote."""
    history = read_history(folder.metrics)
    words, figure = label(lang, "run.loss_words"), loss_figure(lang, history)
    loss = Section(title=label(lang, "loss.title"), words=(words,), items=(figure, *_sources(lang, history)))
    return loss, *_samples(lang, history)


def sources_section(lang: str, read: Sequence[SourceShare]) -> Section:
    """What was learned from each source, and how often it was read."""
    columns = tuple(label(lang, f"run.read.{name}") for name in ("source", "tokens", "learned", "share", "epochs"))
    rows = [
        (each.name, f"{each.tokens:,}", f"{each.learned:,.0f}", human_percent(each.share), f"{each.epochs:.2f}")
        for each in read
    ]
    table = Table(columns=columns, rows=rows, caption=label(lang, "run.read.caption"))
    return Section(title=label(lang, "run.read.title"), items=(table,))


def source_rows(lang: str, by_source: Mapping[str, float]) -> list[tuple[str, str]]:
    """Held-out nats of each source, as (what, value); none where one source is all there is."""
    if len(by_source) < 2:
        return []
    return [(label(lang, "run.row.source", name=name), f"{nats:.3f}") for name, nats in by_source.items()]


def _sources(lang: str, history: History) -> tuple[Table, ...]:
    judged = history.validation_by_source
    if not judged or len(judged[-1]) < 2:
        return ()
    columns = tuple(label(lang, f"run.sources.{name}") for name in ("source", "first", "lowest", "last"))
    rows = []
    for name in judged[-1]:
        nats = [each[name] for each in judged if name in each]
        rows.append((name, *(f"{value:.3f}" for value in (nats[0], min(nats), nats[-1]))))
    return (Table(columns=columns, rows=rows, caption=label(lang, "run.sources.caption")),)


def _samples(lang: str, history: History) -> tuple[Section, ...]:
    """The first, the middle and the last sample."""
    samples = history.samples
    if not samples:
        return ()
    chosen = [samples[index] for index in sorted({0, len(samples) // 2, len(samples) - 1})]
    quotes = [
        Quote(
            prompt=each.prompt,
            continuation=each.text,
            caption=label(lang, "run.samples.caption", step=f"{each.step:,}"),
        )
        for each in chosen
    ]
    return (Section(title=label(lang, "run.samples.title"), words=(label(lang, "run.samples.words"),), items=quotes),)


def _so_far(lang: str, state: TrainState) -> list[tuple[str, str]]:
    done, rows = state.done, []
    if state.first_nats is not None and state.last_nats is not None:
        rows.append((label(lang, "run.row.loss"), f"{state.first_nats:.3f} → {state.last_nats:.3f}"))
    if state.validation_nats is not None:
        rows.append((label(lang, "run.row.held_out"), f"{state.validation_nats:.3f}"))
    return [
        (label(lang, "run.row.steps"), f"{done.steps:,}"),
        (label(lang, "run.row.tokens"), f"{done.tokens:,}"),
        (label(lang, "run.row.speed"), human_number(done.tokens / done.seconds)),
        *rows,
    ]


def _rows_table(lang: str, rows: Sequence[tuple[str, str]]) -> Table:
    return Table(columns=(label(lang, "run.column.what"), label(lang, "run.column.value")), rows=rows)


def _write(folder: RunFolder, verb: str, sections: Sequence[Section], lang: str) -> None:
    title = label(lang, f"run.{verb}.title", name=folder.path.resolve().name)
    write_text(folder.report, render_page(title, label(lang, f"run.{verb}.subtitle"), sections, lang))


def size_section(lang: str, bytes_before: int, bytes_after: int) -> Section:
    """A model's bytes before and after."""
    chart = BarChart(
        axis=Axis(label=label(lang, "run.size.axis"), form="bytes"),
        categories=(label(lang, "run.size.before"), label(lang, "run.size.after")),
        series=(Bars(name="", values=(bytes_before, bytes_after)),),
    )
    figure = Figure(content=chart, caption=label(lang, "run.size.caption"))
    return Section(title=label(lang, "run.size.title"), items=(figure,))


def ranks_section(lang: str, ranks: Mapping[str, int], picture: Figure) -> Section:
    """The rank that each kind of Linear kept, over the layers, under a picture of what each matrix stores."""
    kinds: dict[str, list[int]] = {}
    for path, rank in ranks.items():
        kinds.setdefault(path.rpartition(".")[2], []).append(rank)
    columns = tuple(label(lang, f"run.ranks.{name}") for name in ("linear", "layers", "lowest", "highest"))
    rows = [(name, str(len(found)), str(min(found)), str(max(found))) for name, found in kinds.items()]
    words = (label(lang, "run.ranks.words"),)
    return Section(
        title=label(lang, "run.ranks.title"), words=words, items=(picture, Table(columns=columns, rows=rows))
    )


def peak_row(lang: str, measured_bytes: int, planned_bytes: int) -> tuple[str, str]:
    """The measured peak beside the planned one."""
    values = {"measured": human_bytes(measured_bytes), "planned": human_bytes(planned_bytes)}
    return label(lang, "run.row.peak"), label(lang, "run.peak", **values)
