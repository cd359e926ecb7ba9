"""What a topic is: a formula, its symbols, what it shows of a model and of the notes, and where it is held."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from puna.report.charts import Chart
from puna.report.drawing import HeadsDrawing, ModelDrawing
from puna.topics.subject import Subject
from puna.topics.words import Words

__all__ = ["Grid", "Part", "Shown", "Symbol", "Topic", "Value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of numbers with the names of its rows and columns."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | str]]

    def __post_init__(self) -> None:
        assert len(self.values) == len(self.rows)
        assert all(len(row) == len(self.columns) for row in self.values)


Value = float | str | Sequence[float] | Sequence[str] | Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Numbers by name under a heading: `model` (of the subject), `example` (the notes'), or one of the topic's own.

    A name that ends in `_difference` is what lies between a computation by hand and the engine's: at most 1e-6.
    """

    name: str
    numbers: Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a topic found. Args: pictures: by file name without ending; their titles are the topic's words."""

    parts: Sequence[Part]
    pictures: Mapping[str, Chart | HeadsDrawing | ModelDrawing] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbol:
    """A sign of the formula. Args: axes: its shape, by names of Subject.sizes, such as `n d_h`; unit: such as `rad`."""

    sign: str
    axes: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A formula that can be shown. Args: code, test: (file, name in it) that hold it."""

    name: str
    formula: Sequence[str]
    symbols: Sequence[Symbol]
    show: Callable[[Subject, Words], Shown]
    code: tuple[str, str]
    test: tuple[str, str]
