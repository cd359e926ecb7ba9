"""Documents packed into rows of `seq` inputs: no text is seen from another, and nothing is cut that fits into a row.

A document of L ids gives L - 1 inputs with their targets. One with more than `seq` targets is cut into pieces of at most
`seq` that overlap by one id, so that every target is learned exactly once. Pieces fill rows by best fit decreasing: the
longest first, each into the fullest row that has room for it. Rows with the same room are alike and pieces of one length
are placed together, so that the work grows with the number of lengths and rooms that occur, not with that of documents.

Source: Ding et al. 2024, arXiv:2404.10830.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.errors import BadData

__all__ = ["PackedDocuments", "pack_documents"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedDocuments:
    """Pieces of a stream of ids, row after row: inputs are the ids [start, start + length), targets those one later.

    starts, lengths: of each piece; within a row in the order of the stream.
    ends: row i is the pieces from ends[i - 1] (or 0) up to ends[i].
    """

    starts: Ints
    lengths: Ints
    ends: Ints

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def targets(self) -> int:
        """Targets of all rows, each counted once."""
        return int(self.lengths.sum())

    def row(self, index: int) -> tuple[Ints, Ints]:
        """Starts and lengths of a row's pieces."""
        pieces = slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))
        return self.starts[pieces], self.lengths[pieces]


def pack_documents(document_ends: Ints, seq: int) -> PackedDocuments:
    """Pack the documents of a stream into rows of at most `seq` inputs. The same arguments give the same rows.

    Args:   document_ends: ascending; document i is the ids from document_ends[i - 1] (or 0) up to document_ends[i].
            One of a single id has no target and is left out.
    Errors: BadData where there is no target at all.
    """
    starts, lengths = _cut(document_ends, seq)
    if len(starts) == 0:
        raise BadData(
            f"expected documents with a token to predict, got {len(document_ends)} of a single id each",
            "build shards of longer documents, or set training.packing to contiguous",
        )
    rows = _best_fit(lengths, seq)
    order = np.argsort(rows, kind="stable")
    return PackedDocuments(starts=starts[order], lengths=lengths[order], ends=np.cumsum(np.bincount(rows)))


def _cut(document_ends: Ints, seq: int) -> tuple[Ints, Ints]:
    """Starts and lengths of the pieces, in the order of the stream."""
    begins = np.concatenate(([0], document_ends[:-1]))
    targets = document_ends - begins - 1
    counts = -(-targets // seq)
    document = np.repeat(np.arange(len(counts)), counts)
    offsets = seq * (np.arange(len(document)) - (np.cumsum(counts) - counts)[document])
    return begins[document] + offsets, np.minimum(seq, targets[document] - offsets)


def _best_fit(lengths: Ints, seq: int) -> Ints:
    """The row of each piece."""
    rows = np.empty_like(lengths)
    order = np.argsort(-lengths, kind="stable")
    waiting, opened = _WaitingRows(), 0
    for pieces in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        length, placed = int(lengths[pieces[0]]), 0
        while placed < len(pieces):
            left = len(pieces) - placed
            room, found = waiting.take(length) or (seq, opened + np.arange(-(-left // (seq // length))))
            opened = max(opened, int(found.max()) + 1)
            each = room // length
            used = min(len(found), -(-left // each))
            now = min(left, used * each)
            rows[pieces[placed : placed + now]] = np.repeat(found[:used], each)[:now]
            placed += now
            waiting.add(room - each * length, found[: used - 1])
            waiting.add(room - (now - (used - 1) * each) * length, found[used - 1 : used])
            waiting.add(room, found[used:])
    return rows


class _WaitingRows:
    """Rows that are not full, by their room, those of one room in the order they came."""

    def __init__(self) -> None:
        self._rooms: list[int] = []  # ascending
        self._rows: dict[int, list[Ints]] = {}

    def take(self, length: int) -> tuple[int, Ints] | None:
        """The smallest room that holds a piece of this length, with all rows that have it; None where there is none."""
        place = bisect_left(self._rooms, length)
        if place == len(self._rooms):
            return None
        room = self._rooms.pop(place)
        return room, np.concatenate(self._rows.pop(room))

    def add(self, room: int, rows: Ints) -> None:
        """Rows with so much room left; full ones wait for nothing."""
        if room == 0 or len(rows) == 0:
            return
        if room not in self._rows:
            insort(self._rooms, room)
            self._rows[room] = []
        self._rows[room].append(rows)
