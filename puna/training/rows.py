"""How a source is cut into rows: plain windows of its stream, or whole documents packed together.

Either way a row has `seq` inputs and stands for itself, so that the order of rows and their split into micro-batches are
decided elsewhere (batches.py).
"""

from typing import Protocol

import numpy as np
import torch

from puna.errors import BadData
from puna.model.batch import Batch
from puna.tokens.packing import pack_documents
from puna.tokens.shards import Shards
from puna.training.config import TrainingConfig

__all__ = ["DocumentRows", "Rows", "WindowRows", "cut_rows"]


class Rows(Protocol):
    """One source cut into rows, counted from 0."""

    @property
    def tokens(self) -> int:
        """What there is to learn in an epoch."""

    @property
    def padding(self) -> float:
        """The share of all inputs that hold nothing."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Batch:
        """A batch of this row alone."""

    def documents(self, index: int) -> np.ndarray:
        """The documents that a row reads from, ascending, counted from 0 in the source."""


def cut_rows(shards: Shards, config: TrainingConfig) -> Rows:
    """Cut a source as `training.packing` says. Errors: BadData where it gives no row."""
    if config.packing == "documents":
        return DocumentRows(shards, config.seq)
    return WindowRows(shards, config.seq)


class WindowRows:
    """Windows of the stream, end to end; a rest shorter than one is not read. Errors: BadData for less than a window."""

    def __init__(self, shards: Shards, seq: int) -> None:
        if len(shards) <= seq:
            raise BadData(
                f"{len(shards)} tokens are less than one window of {seq + 1}", "use a smaller --seq or more text"
            )
        self._shards, self._seq = shards, seq
        self.tokens, self.padding = len(shards), 0.0

    def __len__(self) -> int:
        return (len(self._shards) - 1) // self._seq

    def row(self, index: int) -> Batch:
        """A window and the ids one later; every target counts."""
        ids_BT = torch.from_numpy(self._shards.window(index * self._seq, self._seq + 1))[None]
        return Batch(ids_BT=ids_BT[:, :-1], targets_BT=ids_BT[:, 1:])

    def documents(self, index: int) -> np.ndarray:
        """All that the window, its last target included, reaches into."""
        places = (index * self._seq, (index + 1) * self._seq)
        first, last = np.searchsorted(self._shards.document_ends, places, side="right")
        return np.arange(first, last + 1)


class DocumentRows:
    """Whole documents, packed (tokens/packing.py); each sees itself alone and counts its positions from 0.

    What is left of a row is padding: id 0, a document of its own, nothing to learn. Errors: BadData without a target.
    """

    def __init__(self, shards: Shards, seq: int) -> None:
        self._shards, self._seq = shards, seq
        self._packed = pack_documents(shards.document_ends, seq)
        self.tokens = self._packed.targets
        self.padding = 1 - self.tokens / (len(self) * seq)

    def __len__(self) -> int:
        return len(self._packed)

    def row(self, index: int) -> Batch:
        """The documents one after the other, then padding."""
        ids, targets, positions = (np.zeros((1, self._seq), np.int64) for _ in range(3))
        starts, lengths = self._packed.row(index)
        documents, end = np.full((1, self._seq), len(starts)), 0
        for number, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            begin, end = end, end + length
            piece = self._shards.window(start, length + 1)
            ids[0, begin:end], targets[0, begin:end] = piece[:-1], piece[1:]
            positions[0, begin:end], documents[0, begin:end] = np.arange(length), number
        positions[0, end:] = np.arange(self._seq - end)
        return Batch(
            ids_BT=torch.from_numpy(ids),
            targets_BT=torch.from_numpy(targets),
            keep_BT=torch.from_numpy(np.arange(self._seq)[None] < end),
            positions_BT=torch.from_numpy(positions),
            documents_BT=torch.from_numpy(documents),
        )

    def documents(self, index: int) -> np.ndarray:
        """Those whose pieces stand in the row."""
        starts, _ = self._packed.row(index)
        return np.searchsorted(self._shards.document_ends, starts, side="right")
