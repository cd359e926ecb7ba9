"""Which tokens a step sees: a function of (data, seed, step) alone, so that a resumed run reads what the first would have.

Each source is cut into rows (rows.py); each epoch visits them in an order of its own, drawn from (seed, source, epoch).
The mixture says which source serves the next row.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from puna.errors import BadData
from puna.model.batch import Batch, join_batches
from puna.text.mixture import Mixture
from puna.tokens.shards import Shards
from puna.training.config import TrainingConfig
from puna.training.rows import Rows

__all__ = ["BatchSource", "RowSource", "ordered_windows"]


class BatchSource(Protocol):
    """Random access to the micro-batches of a step."""

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""

    def describe(self, step: int) -> str:
        """Which texts these come from, for a person."""


class RowSource:
    """Pretraining rows of several sources, mixed by weight."""

    def __init__(
        self, rows: Sequence[Rows], mixture: Mixture, config: TrainingConfig, names: Sequence[str] = ()
    ) -> None:
        """Args: names: of the sources, for messages."""
        self._rows = tuple(rows)
        self._names = tuple(names) or tuple(f"source {number}" for number in range(len(rows)))
        self._turns = _Turns(mixture)
        self._config = config
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""
        batch, micro = self._config.batch, self._config.micro_batch
        rows = [self._rows[source].row(index) for source, index in self._places(step)]
        return [join_batches(rows[start : start + micro]) for start in range(0, batch, micro)]

    def describe(self, step: int) -> str:
        """Each row's source and documents, counted from 0 in its shards."""
        return ", ".join(
            f"{self._names[source]}: {_documents(self._rows[source].documents(index))}"
            for source, index in self._places(step)
        )

    def _places(self, step: int) -> list[tuple[int, int]]:
        """The source of each row of a step, and the row's number there."""
        batch = self._config.batch
        return [(source, self._index(source, turn)) for source, turn in self._turns.take(step * batch, batch)]

    def _index(self, source: int, turn: int) -> int:
        count = len(self._rows[source])
        epoch, place = divmod(turn, count)
        if self._orders.get(source, (-1, None))[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=_key(self._config.seed, source, epoch)))
            self._orders[source] = (epoch, generator.permutation(count))
        return int(self._orders[source][1][place])


def ordered_windows(shards: Shards, seq: int, batch: int, limit: int | None = None) -> list[Batch]:
    """Windows from the start, in order, at most `limit` of them: what validation reads.

    Text shorter than a window is one shorter window. Errors: BadData where there is no token with context.
    """
    seq = min(seq, len(shards) - 1)
    if seq < 1:
        raise BadData(f"held-out text: expected at least 2 tokens, got {len(shards)}", "hold out more text")
    count = (len(shards) - 1) // seq
    starts = [index * seq for index in range(count if limit is None else min(limit, count))]
    result = []
    for first in range(0, len(starts), batch):
        windows = [shards.window(start, seq + 1) for start in starts[first : first + batch]]
        ids = torch.from_numpy(np.stack(windows))
        result.append(Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:]))
    return result


class _Turns:
    """(source, how often it was served before) for each row, going on from the last call without counting anew."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self._jump(0)

    def take(self, start: int, count: int) -> list[tuple[int, int]]:
        """The turns from row `start` on."""
        if start != self._position:
            self._jump(start)
        result = []
        for source in islice(self._sources, count):
            result.append((source, self._served[source]))
            self._served[source] += 1
        self._position += count
        return result

    def _jump(self, start: int) -> None:
        self._position = start
        self._served = list(self._mixture.counts(start))
        self._sources = islice(self._mixture, start % sum(self._mixture.weights), None)


def _documents(numbers: np.ndarray) -> str:
    """`document 3`, `documents 3 to 7` where none between is left out, `documents 3, 5, 9`."""
    if len(numbers) == 1:
        return f"document {numbers[0]}"
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"documents {numbers[0]} to {numbers[-1]}"
    return "documents " + ", ".join(str(number) for number in numbers)


def _key(seed: int, source: int, epoch: int) -> int:
    return (seed << 64) + (source << 32) + epoch
