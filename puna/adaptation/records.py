"""Records to learn from: texts, or prompts with the completion that is to be learned.

A text is learned whole; of a prompt and its completion only the completion and the end-of-text id count. Records are
packed into rows of `seq` tokens; tokens of one record never see those of another.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from puna.errors import BadData, UsageError
from puna.model.batch import Batch
from puna.text.corpus import read_documents
from puna.tokens.tokenizer import Tokenizer

__all__ = ["Record", "RecordCounts", "RecordSource", "encode_records", "pack_records", "read_records"]

_LATER = ("messages", "instruction", "question")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What to learn (`completion`) after what is given (`prompt`, empty for a plain text)."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCounts:
    """How many records are used, how many are dropped, and why."""

    used: int
    dropped: int
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One packed row: ids with one more than the inputs of each record, cut to inputs, targets, keep and documents."""

    ids: np.ndarray
    targets: np.ndarray
    keep: np.ndarray
    documents: np.ndarray


def read_records(paths: Sequence[Path]) -> tuple[list[Record], RecordCounts]:
    """Records of JSON-lines files (`text`, or `prompt` and `completion`) and of text files or folders, whole.

    Errors: BadData where nothing is usable or more than 1 % of the lines are broken; UsageError for kinds not built yet.
    """
    records, reasons = [], Counter[str]()
    for path in paths:
        if path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                record = _parse(line, f"{path}:{number}")
                if isinstance(record, Record):
                    records.append(record)
                else:
                    reasons[record] += 1
        else:
            documents = read_documents([path]).documents
            records += [Record(prompt="", completion=document.text) for document in documents]
    dropped = reasons.total()
    if not records:
        raise BadData("no usable record", 'a line is {"text": ...} or {"prompt": ..., "completion": ...}')
    if dropped > (len(records) + dropped) / 100:
        raise BadData(f"{dropped} of {len(records) + dropped} records cannot be used: {dict(reasons)}", "mend the file")
    return records, RecordCounts(used=len(records), dropped=dropped, reasons=dict(reasons))


def encode_records(
    records: Sequence[Record], tokenizer: Tokenizer, seq: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, learn) for each record, in pieces of at most seq + 1 ids; `learn` marks the ids that are targets."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for record in records:
        given = start + tokenizer.encode(record.prompt)
        learned = [*tokenizer.encode(record.completion), *tokenizer.eos_ids[:1]]
        ids = np.array(given + learned, dtype=np.int64)
        learn = np.arange(len(ids)) >= len(given)
        for begin in range(0, len(ids) - 1, seq):
            if learn[begin + 1 : begin + seq + 1].any():
                yield ids[begin : begin + seq + 1], learn[begin : begin + seq + 1]


def pack_records(encoded: Sequence[tuple[np.ndarray, np.ndarray]], seq: int, seed: int) -> list[Row]:
    """Fill rows of `seq` tokens with whole records, in a seeded order; each row is closed when the next would not fit."""
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(encoded))
    rows: list[Row] = []
    open_row: list[tuple[np.ndarray, np.ndarray]] = []
    room = seq
    for index in order:
        ids, learn = encoded[index]
        if len(ids) - 1 > room:
            rows.append(_close(open_row, seq))
            open_row, room = [], seq
        open_row.append((ids, learn))
        room -= len(ids) - 1
    return [*rows, _close(open_row, seq)]


class RecordSource:
    """Random access to steps over packed rows, each epoch in an order of its own."""

    def __init__(self, rows: Sequence[Row], batch: int, micro_batch: int, seed: int) -> None:
        if not rows:
            raise BadData("no record is left to learn from")
        self._rows, self._batch, self._micro_batch, self._seed = rows, batch, micro_batch, seed

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""
        rows = [self._row(turn) for turn in range(step * self._batch, (step + 1) * self._batch)]
        return [collate(rows[start : start + self._micro_batch]) for start in range(0, self._batch, self._micro_batch)]

    def _row(self, turn: int) -> Row:
        epoch, index = divmod(turn, len(self._rows))
        order = np.random.Generator(np.random.Philox(key=(self._seed << 32) + epoch)).permutation(len(self._rows))
        return self._rows[order[index]]


def collate(rows: Sequence[Row]) -> Batch:
    """Rows as a batch; where every row is one record, plain causal attention serves."""
    several = any(row.documents.max() > 0 for row in rows)
    return Batch(
        ids_BT=torch.from_numpy(np.stack([row.ids for row in rows])),
        targets_BT=torch.from_numpy(np.stack([row.targets for row in rows])),
        keep_BT=torch.from_numpy(np.stack([row.keep for row in rows])),
        documents_BT=torch.from_numpy(np.stack([row.documents for row in rows])) if several else None,
    )


def _close(records: Sequence[tuple[np.ndarray, np.ndarray]], seq: int) -> Row:
    ids, targets = np.zeros(seq, np.int64), np.zeros(seq, np.int64)
    keep, documents = np.zeros(seq, bool), np.full(seq, -1, np.int64)
    begin = 0
    for number, (record, learn) in enumerate(records):
        end = begin + len(record) - 1
        ids[begin:end], targets[begin:end] = record[:-1], record[1:]
        keep[begin:end], documents[begin:end] = learn[1:], number
        begin = end
    return Row(ids=ids, targets=targets, keep=keep, documents=documents)


def _parse(line: str, place: str) -> Record | str:
    """A record, or why the line is none. Errors: UsageError for a kind of record that is not built yet."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(value, Mapping):
        return "not an object"
    if isinstance(value.get("text"), str):
        record = Record(prompt="", completion=value["text"])
    elif isinstance(value.get("prompt"), str) and isinstance(value.get("completion"), str):
        record = Record(prompt=value["prompt"], completion=value["completion"])
    elif later := next((key for key in _LATER if key in value), None):
        raise UsageError(f"{place}: records with '{later}' are not built yet", "use text, or prompt and completion")
    else:
        return "neither text nor prompt and completion"
    return record if record.completion.strip() else "nothing to learn"
