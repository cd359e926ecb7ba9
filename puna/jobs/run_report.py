"""report.html of a run: what came out, in a table, and the sections of its verb."""

from collections.abc import Mapping, Sequence

from puna.files import write_text
from puna.jobs.run_folder import RunFolder
from puna.jobs.sections import loss_figure, read_history
from puna.report.axes import Axis
from puna.report.bars import BarChart, Bars
from puna.report.labels import label
from puna.report.numbers import human_bytes
from puna.report.page import Figure, Section, Table, render_page

__all__ = ["loss_section", "peak_row", "ranks_section", "size_section", "write_run_report"]


def write_run_report(
    folder: RunFolder, verb: str, rows: Sequence[tuple[str, str]], sections: Sequence[Section], lang: str = "en"
) -> None:
    """Write a run's page. Args: rows: the result as (what, value). Errors: DiskFull."""
    columns = (label(lang, "run.column.what"), label(lang, "run.column.value"))
    result = Section(title=label(lang, "run.result"), items=(Table(columns=columns, rows=rows),))
    title = label(lang, f"run.{verb}.title", name=folder.path.resolve().name)
    write_text(folder.report, render_page(title, label(lang, f"run.{verb}.subtitle"), (result, *sections), lang))


def loss_section(lang: str, folder: RunFolder) -> Section:
    """The loss over the run, from its metrics."""
    figure = loss_figure(lang, read_history(folder.metrics))
    return Section(title=label(lang, "loss.title"), words=(label(lang, "run.loss_words"),), items=(figure,))


def size_section(lang: str, bytes_before: int, bytes_after: int) -> Section:
    """A model's bytes before and after."""
    chart = BarChart(
        axis=Axis(label=label(lang, "run.size.axis"), form="bytes"),
        categories=(label(lang, "run.size.before"), label(lang, "run.size.after")),
        series=(Bars(name="", values=(bytes_before, bytes_after)),),
    )
    figure = Figure(content=chart, caption=label(lang, "run.size.caption"))
    return Section(title=label(lang, "run.size.title"), items=(figure,))


def ranks_section(lang: str, ranks: Mapping[str, int]) -> Section:
    """The rank that each kind of Linear kept, over the layers."""
    kinds: dict[str, list[int]] = {}
    for path, rank in ranks.items():
        kinds.setdefault(path.rpartition(".")[2], []).append(rank)
    columns = tuple(label(lang, f"run.ranks.{name}") for name in ("linear", "layers", "lowest", "highest"))
    rows = [(name, str(len(found)), str(min(found)), str(max(found))) for name, found in kinds.items()]
    words = (label(lang, "run.ranks.words"),)
    return Section(title=label(lang, "run.ranks.title"), words=words, items=(Table(columns=columns, rows=rows),))


def peak_row(lang: str, measured_bytes: int, planned_bytes: int) -> tuple[str, str]:
    """The measured peak beside the planned one."""
    values = {"measured": human_bytes(measured_bytes), "planned": human_bytes(planned_bytes)}
    return label(lang, "run.row.peak"), label(lang, "run.peak", **values)
