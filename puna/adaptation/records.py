"""Records to learn from: texts, or prompts with the completion that is to be learned.

A text is learned whole; of a prompt and its completion only the completion and the end-of-text id count. Records are
packed into rows of `seq` tokens; tokens of one record never see those of another.
"""

import codecs
import hashlib
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

__all__ = [
    "Record",
    "RecordCounts",
    "RecordSource",
    "Row",
    "collate",
    "encode_records",
    "pack_records",
    "read_records",
    "rows_sha256",
]

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
    """One packed row of `seq` inputs, their targets, which of these are learned, and the record of each (-1: filler)."""

    ids: np.ndarray
    targets: np.ndarray
    keep: np.ndarray
    documents: np.ndarray


def read_records(paths: Sequence[Path]) -> tuple[list[Record], RecordCounts]:
    """Records of JSON-lines files (`text`, or `prompt` and `completion`) and of text files or folders, whole.

    Errors: BadData where nothing is usable or more than 1 % of the lines are broken; UsageError for kinds not built yet.
    """
    records: list[Record] = []
    bad: list[tuple[str, str]] = []
    for path in paths:
        if path.suffix == ".jsonl":
            for place, line in _lines(path):
                record = _parse(line, place)
                if isinstance(record, Record):
                    records.append(record)
                else:
                    bad.append((record, place))
        else:
            corpus = read_documents([path])
            records += [Record(prompt="", completion=document.text) for document in corpus.documents]
            bad += [("a line without text", str(path))] * corpus.bad_lines
    if len(bad) > (len(records) + len(bad)) / 100:
        raise BadData(
            f"{len(bad)} of {len(records) + len(bad)} records cannot be used; the first is {bad[0][1]}: {bad[0][0]}",
            'a line is {"text": ...} or {"prompt": ..., "completion": ...}',
        )
    if not records:
        raise BadData("no record at all", 'a line is {"text": ...} or {"prompt": ..., "completion": ...}')
    reasons = Counter(reason for reason, _ in bad)
    return records, RecordCounts(used=len(records), dropped=len(bad), reasons=dict(reasons))


def encode_records(
    records: Sequence[Record], tokenizer: Tokenizer, seq: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, learn) for each record, in pieces of at most seq + 1 ids; `learn` marks the ids that are targets.

    The last id of a piece is the first of the next, so that every learned id is a target once; pieces of prompt alone
    are left out.
    """
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
    return [*rows, _close(open_row, seq)] if open_row else rows


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


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(place, line) of those that are not blank. Only \\n ends a line: JSON text may hold every other separator."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadData(f"{path}: {error.strerror}", "check the path") from None
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line


def _parse(line: bytes, place: str) -> Record | str:
    """A record, or why the line is none. Errors: UsageError for a kind of record that is not built yet."""
    try:
        value = json.loads(line.decode("utf-8"))
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
    try:
        (record.prompt + record.completion).encode("utf-8")
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return record if record.completion.strip() else "nothing to learn"
