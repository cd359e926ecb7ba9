"""What low rank made of a model, as pictures: what each matrix keeps, and how fast its loss falls with the rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Literal

from puna.compression.embeddings import FactoredTable
from puna.compression.hulls import Matrix
from puna.jobs.factoring import Factored
from puna.report.axes import Axis
from puna.report.heat import HeatMap
from puna.report.labels import label
from puna.report.page import Figure, Section
from puna.report.panels import Panel, PanelChart

__all__ = [
    "TableName",
    "TableSpectrum",
    "kept_figure",
    "spectra_section",
    "table_spectra",
    "tables_section",
]

TableName = Literal["embed_tokens", "lm_head", "both"]

_POINTS = 40  # of a curve


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpectrum:
    """What leaving out each direction of a table costs, the dearest first, and how many it kept."""

    energies: tuple[float, ...]
    rank: int


def kept_figure(lang: str, factored: Factored) -> Figure:
    """The share of its numbers that each matrix stores: a row for each kind, a column for each layer."""
    kinds = _by_kind(factored.matrices)
    layers = sorted({layer for found in kinds.values() for layer in found})
    values = [[_share(factored, *found[layer]) for layer in layers] for found in kinds.values()]
    chart = HeatMap(
        rows=list(kinds),
        columns=[str(layer) for layer in layers],
        values=values,
        columns_label=label(lang, "kept.layer"),
        key=label(lang, "kept.key"),
        whole=label(lang, "kept.dense"),
    )
    return Figure(content=chart, caption=label(lang, "kept.caption"))


def spectra_section(lang: str, factored: Factored) -> Section:
    """The loss that is left at each rank, for each kind of matrix: the median over the layers between least and most."""
    panels = [
        _panel(kind, [matrix for _, matrix in found.values()]) for kind, found in _by_kind(factored.matrices).items()
    ]
    figure = Figure(content=_chart(lang, panels), caption=label(lang, "spectra.caption"))
    return Section(title=label(lang, "spectra.title"), words=(label(lang, "spectra.words"),), items=(figure,))


def table_spectra(tables: Mapping[str, FactoredTable], *, tied: bool) -> dict[TableName, TableSpectrum]:
    """Of what `factor_tables` made, what a picture needs; of a tied pair the one table is both."""
    names: dict[str, TableName] = {"embed_tokens": "both" if tied else "embed_tokens", "lm_head": "lm_head"}
    return {
        names[name]: TableSpectrum(energies=tuple(table.energy_D.tolist()), rank=len(table.R_KD))
        for name, table in tables.items()
    }


def tables_section(lang: str, tables: Mapping[TableName, TableSpectrum]) -> Section:
    """The loss that is left at each number of directions, for each table that was made smaller, and the number that it has."""
    panels = []
    for name, table in tables.items():
        curve, kept = _loss_left(table.energies), table.rank / len(table.energies)
        panels.append(_line(label(lang, f"tables.{name}"), (curve, curve, curve), kept))
    figure = Figure(content=_chart(lang, panels), caption=label(lang, "tables.caption"))
    return Section(title=label(lang, "tables.title"), words=(label(lang, "tables.words"),), items=(figure,))


def _chart(lang: str, panels: Sequence[Panel]) -> PanelChart:
    return PanelChart(
        x=Axis(label=label(lang, "spectra.x_axis"), form="percent"),
        y=Axis(label=label(lang, "spectra.y_axis"), form="percent", is_log=True),
        panels=panels,
    )


def _line(name: str, curves: tuple[Sequence[float], Sequence[float], Sequence[float]], mark: float) -> Panel:
    """Args: curves: the least, the middle and the most that is left."""
    low, middle, high = curves
    shares = [index / _POINTS for index in range(_POINTS + 1)]
    return Panel(name=name, x=shares, low=low, middle=middle, high=high, mark=mark)


def _by_kind(matrices: Mapping[str, Matrix]) -> dict[str, dict[int, tuple[str, Matrix]]]:
    """(name, matrix) by kind and layer; the kinds as people call them: `q, k, v`, `down`."""
    kinds: dict[str, dict[int, tuple[str, Matrix]]] = {}
    for name, matrix in matrices.items():
        parent, _, members = name.rpartition(".")
        kind = ", ".join(member.removesuffix("_proj") for member in members.split("+"))
        kinds.setdefault(kind, {})[int(parent.split(".")[1])] = (name, matrix)
    return kinds


def _share(factored: Factored, name: str, matrix: Matrix) -> float | None:
    rank = factored.cuts.get(name)
    return None if rank is None else rank * (matrix.d_out + matrix.d_in) / matrix.dense


def _panel(kind: str, matrices: Sequence[Matrix]) -> Panel:
    """One kind's curves over the layers, and the rank from which on factors store more than the matrix."""
    curves = list(zip(*(_loss_left(matrix.energies) for matrix in matrices), strict=True))
    first = matrices[0]
    even = first.dense / (first.d_out + first.d_in) / min(first.d_out, first.d_in)
    low, middle, high = ([summary(values) for values in curves] for summary in (min, median, max))
    return _line(kind, (low, middle, high), even)


def _loss_left(energies: Sequence[float]) -> list[float]:
    """The share of the whole loss that is left at evenly spaced ranks from none to all."""
    tails = list(accumulate(reversed(energies), initial=0.0))[::-1]
    whole = tails[0] if tails[0] > 0 else 1.0
    return [tails[round(index * len(energies) / _POINTS)] / whole for index in range(_POINTS + 1)]
