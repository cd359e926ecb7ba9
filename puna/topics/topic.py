"""What a topic is: a formula, its symbols, what it shows of a model and of the notes, and where it is held."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn

from puna.arch.config import ModelConfig
from puna.report.axes import Axis
from puna.report.charts import Chart
from puna.report.curves import LineChart, Series
from puna.report.drawing import HeadsDrawing, ModelDrawing
from puna.topics.subject import Subject
from puna.topics.words import Words

__all__ = [
    "Grid",
    "Part",
    "Picture",
    "Rows",
    "Shown",
    "Topic",
    "Value",
    "attended_by_hand",
    "curves",
    "notes_layer",
    "relative_difference",
    "watching",
]


Rows = Mapping[str, Sequence[float | str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of numbers with the names of its rows and columns."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | str]]

    def __post_init__(self) -> None:
        assert len(self.values) == len(self.rows)
        assert all(len(row) == len(self.columns) for row in self.values)

    @classmethod
    def of(cls, columns: Sequence[str], rows: Rows) -> Self:
        """One whose rows have names of their own."""
        return cls(rows=list(rows), columns=columns, values=list(rows.values()))


Picture = Chart | HeadsDrawing | ModelDrawing
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
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    @classmethod
    def of(cls, *, pictures: Mapping[str, Picture] = MappingProxyType({}), **parts: Mapping[str, Value]) -> Self:
        """These parts, in this order."""
        return cls(parts=[Part(name=name, numbers=numbers) for name, numbers in parts.items()], pictures=pictures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A formula that can be shown.

    Args: symbols: of each sign its shape, by names of Subject.sizes, such as `n d_h`; or else its unit, such as `rad`.
          code, test: (file, name in it) that hold it.
    """

    name: str
    formula: Sequence[str]
    symbols: Mapping[str, str]
    show: Callable[[Subject, Words], Shown]
    code: tuple[str, str]
    test: tuple[str, str]


def attended_by_hand(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, factor: float, sink_H: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, weights, and c_i = sum over the visible j of weight_ij v_j; a sink takes its part and gives nothing.

    What the engine's attention is compared with.
    """
    scores = q @ k.transpose(-1, -2) * factor
    masked = scores.masked_fill(~seen, -torch.inf)
    if sink_H is not None:
        masked = torch.cat((masked, sink_H[:, None, None].expand(-1, masked.shape[1], 1)), dim=-1)
    weights = masked.softmax(-1)[..., : k.shape[-2]]
    return scores, weights, weights @ v


def curves(x: Axis, y: Axis, at: Sequence[float], lines: Mapping[str, Sequence[float]]) -> LineChart:
    """Lines by name over the same values of x."""
    return LineChart(x=x, y=y, series=[Series(name=name, x=at, y=values) for name, values in lines.items()])


def notes_layer(kv_heads: int) -> ModelConfig:
    """The notes' one layer of grouped attention: 100 tokens, width 512, 8 heads of 64."""
    return ModelConfig(
        vocab_size=512, dim=512, n_layers=1, n_heads=8, n_kv_heads=kv_heads, head_dim=64, ffn_dim=512, max_seq_len=100
    )


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest, of the largest value that was expected."""
    return float((found - expected).abs().max() / expected.abs().max())


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Within the block, show each module's name, first input and output as it has run."""
    hooks = [
        module.register_forward_hook(lambda _, given, made, name=name: see(name, given[0], made))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
