"""Encoded records packed into rows, and rows into the steps of a run.

A record stands whole in one row (a text that is longer goes on in pieces) and never sees another one; rows are filled by
best fit (tokens/packing.py).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from puna.adaptation.encoding import EncodedRecord
from puna.errors import BadData
from puna.model.batch import Batch
from puna.tokens.packing import pack_documents

__all__ = ["RecordSource", "Row", "collate", "pack_records", "rows_sha256"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One packed row of `seq` inputs, their targets, which of these are learned, and the record of each (-1: filler)."""

    ids: NDArray[np.int32]
    targets: NDArray[np.int32]
    keep: NDArray[np.bool_]
    documents: NDArray[np.int32]


def pack_records(records: Sequence[EncodedRecord], seq: int) -> list[Row]:
    """Rows of `seq` inputs that hold every target of every record once. The same records give the same rows."""
    if not records:
        return []
    ids = np.concatenate([record.ids for record in records])
    learn = np.concatenate([record.learn for record in records])
    packed = pack_documents(np.cumsum([len(record.ids) for record in records]), seq)
    return [_row(ids, learn, packed.row(index), seq) for index in range(len(packed))]


def rows_sha256(rows: Sequence[Row]) -> str:
    """A digest of what is learned, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.ids.tobytes() + row.targets.tobytes() + row.keep.tobytes())
    return digest.hexdigest()


class RecordSource:
    """Random access to steps over packed rows, each epoch in an order of its own."""

    def __init__(self, rows: Sequence[Row], batch: int, micro_batch: int, seed: int) -> None:
        if not rows:
            raise BadData("no record is left to learn from")
        self._rows, self._batch, self._micro_batch, self._seed = rows, batch, micro_batch, seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""
        rows = [self._row(turn) for turn in range(step * self._batch, (step + 1) * self._batch)]
        return [collate(rows[start : start + self._micro_batch]) for start in range(0, self._batch, self._micro_batch)]

    def describe(self, step: int) -> str:
        """The packed rows of a step, counted from 0."""
        turns = range(step * self._batch, (step + 1) * self._batch)
        return "packed rows " + ", ".join(str(self._index(turn)) for turn in turns)

    def _row(self, turn: int) -> Row:
        return self._rows[self._index(turn)]

    def _index(self, turn: int) -> int:
        epoch, index = divmod(turn, len(self._rows))
        if self._order[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=(self._seed << 32) + epoch))
            self._order = epoch, generator.permutation(len(self._rows))
        return int(self._order[1][index])


def collate(rows: Sequence[Row]) -> Batch:
    """Rows as a batch; where every row is one record, plain causal attention serves."""
    several = any(row.documents.max() > 0 for row in rows)
    return Batch(
        ids_BT=torch.from_numpy(np.stack([row.ids for row in rows])).long(),
        targets_BT=torch.from_numpy(np.stack([row.targets for row in rows])).long(),
        keep_BT=torch.from_numpy(np.stack([row.keep for row in rows])),
        documents_BT=torch.from_numpy(np.stack([row.documents for row in rows])).long() if several else None,
    )


def _row(
    ids: NDArray[np.int32],
    learn: NDArray[np.bool_],
    pieces: tuple[NDArray[np.int64], NDArray[np.int64]],
    seq: int,
) -> Row:
    row = Row(
        ids=np.zeros(seq, np.int32),
        targets=np.zeros(seq, np.int32),
        keep=np.zeros(seq, bool),
        documents=np.full(seq, -1, np.int32),
    )
    end = 0
    for number, (start, length) in enumerate(zip(pieces[0].tolist(), pieces[1].tolist(), strict=True)):
        begin, end = end, end + length
        row.ids[begin:end], row.targets[begin:end] = (ids[i : i + length] for i in (start, start + 1))
        row.keep[begin:end], row.documents[begin:end] = learn[start + 1 : start + 1 + length], number
    return row
