"""Which tokens a step sees: a function of (data, seed, step) alone, so that a resumed run reads what the first would have.

Each source is cut into windows; each epoch visits them in an order of its own, drawn from (seed, source, epoch). The
mixture says which source serves the next window.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from puna.errors import BadData
from puna.model.batch import Batch
from puna.text.mixture import Mixture
from puna.tokens.packing import document_ids
from puna.tokens.shards import Shards
from puna.training.config import TrainingConfig

__all__ = ["BatchSource", "WindowSource", "ordered_windows"]


class BatchSource(Protocol):
    """Random access to the micro-batches of a step."""

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""

    def describe(self, step: int) -> str:
        """Which texts these come from, for a person."""


class WindowSource:
    """Pretraining windows of token shards, mixed by weight."""

    def __init__(
        self, shards: Sequence[Shards], mixture: Mixture, config: TrainingConfig, names: Sequence[str] = ()
    ) -> None:
        """Args: names: of the sources, for messages. Errors: BadData: a source of less than a window."""
        self._shards = tuple(shards)
        self._names = tuple(names) or tuple(f"source {number}" for number in range(len(shards)))
        self._turns = _Turns(mixture)
        self._config = config
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        for item in shards:
            if len(item) <= config.seq:
                raise BadData(
                    f"{len(item)} tokens are less than one window of {config.seq + 1}",
                    "use a smaller --seq or more text",
                )

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""
        batch, micro = self._config.batch, self._config.micro_batch
        windows = self._windows(step)
        return [self._collate(windows[start : start + micro]) for start in range(0, batch, micro)]

    def describe(self, step: int) -> str:
        """Each window's source and documents, counted from 0 in its shards."""
        return ", ".join(self._place(source, start) for source, start in self._windows(step))

    def _windows(self, step: int) -> list[tuple[int, int]]:
        """The source of each window of a step, and where it starts there."""
        batch = self._config.batch
        return [self._window(source, turn) for source, turn in self._turns.take(step * batch, batch)]

    def _place(self, source: int, start: int) -> str:
        ends = self._shards[source].document_ends
        first, last = np.searchsorted(ends, (start, start + self._config.seq), side="right")
        last = min(last, len(ends) - 1)
        return f"{self._names[source]}: " + (f"document {first}" if first == last else f"documents {first} to {last}")

    def _window(self, source: int, turn: int) -> tuple[int, int]:
        count = (len(self._shards[source]) - 1) // self._config.seq
        epoch, index = divmod(turn, count)
        if self._orders.get(source, (-1, None))[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=_key(self._config.seed, source, epoch)))
            self._orders[source] = (epoch, generator.permutation(count))
        return source, int(self._orders[source][1][index]) * self._config.seq

    def _collate(self, windows: Sequence[tuple[int, int]]) -> Batch:
        length = self._config.seq + 1
        ids = torch.from_numpy(np.stack([self._shards[source].window(start, length) for source, start in windows]))
        documents = None
        if self._config.isolate_documents:
            rows = [document_ids(self._shards[source].document_ends, start, length - 1) for source, start in windows]
            documents = torch.from_numpy(np.stack(rows))
        return Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:], documents_BT=documents)


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
    """(source, how often it was served before) for each window, going on from the last call without counting anew."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self._jump(0)

    def take(self, start: int, count: int) -> list[tuple[int, int]]:
        """The turns from window `start` on."""
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


def _key(seed: int, source: int, epoch: int) -> int:
    return (seed << 64) + (source << 32) + epoch
