"""The records of an adaptation, from files to packed rows: those to learn from, and those held out; and a look at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from puna.adaptation.encoding import EncodedRecord, cut_record
from puna.adaptation.lint import Linted, RecordCounts, lint_records, refusal
from puna.adaptation.records import RecordSettings, read_records
from puna.adaptation.rows import Row, pack_records
from puna.errors import BadData, UsageError
from puna.jobs.load import LoadedModel, find_model
from puna.report.labels import label
from puna.tokens.tokenizer import Tokenizer
from puna.weights.headers import read_header
from puna.weights.vocabulary import tokenizer_of

__all__ = ["Preview", "PreviewedRecord", "Span", "pack_data", "preview", "record_flags", "record_rows"]

PREVIEWED = 3
_HELD_OUT_SHARE = 10

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Tokens one after the other that are all learned, or all given."""

    text: str
    tokens: int
    is_learned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewedRecord:
    """A record as the model would see it."""

    place: str
    kind: str
    spans: list[Span]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What `puna adapt --preview --json` prints."""

    records: RecordCounts
    previewed: list[PreviewedRecord]


def pack_data(
    data: Sequence[Path],
    validation: Path | None,
    settings: RecordSettings,
    loaded: LoadedModel,
    *,
    seq: int,
    anyway: bool = False,
) -> tuple[list[Row], list[Row], RecordCounts]:
    """Packed rows to learn from and held-out rows: a file of its own, or the last tenth of the records.

    A long text alone gives the last tenth of its pieces of `seq` tokens. Args: anyway: learn whatever the lint says.
    Errors: BadData, UsageError.
    """
    tokenizer = loaded.tokenizer
    _check_seq(seq, loaded.config.max_seq_len)
    linted = _read(data, settings, tokenizer, seq, anyway=anyway)
    learned, judged = linted.records, []
    if validation is not None:
        judged = _read([validation], settings, tokenizer, seq, anyway=anyway).records
    elif len(learned) > 1:
        learned, judged = _hold_out(learned)
    else:
        learned, judged = _hold_out([piece for record in learned for piece in cut_record(record, seq)])
    if not (learned and judged):
        raise BadData(f"{linted.counts.used} records are too few to learn from and to hold one out", "add records")
    return pack_records(learned, seq), pack_records(judged, seq), linted.counts


def preview(
    model: Path,
    data: Sequence[Path],
    settings: RecordSettings,
    *,
    seq: int,
    count: int = PREVIEWED,
    anyway: bool = False,
) -> tuple[Preview, BadData | None]:
    """The first records as the model would see them, and what the lint says of all; no weight is read.

    Args:    model: a run, a folder or a file with a tokenizer. count: how many records to show.
    Returns: and why a run would be refused, None where it would not.
    Errors:  UsageError: no tokenizer, fewer than one record, rows beyond the context. BadData: nothing can be read.
    """
    if count < 1:
        raise UsageError(f"preview: expected at least 1 record, got {count}", f"leave the number out for {PREVIEWED}")
    header = read_header(find_model(model))
    tokenizer = tokenizer_of(header)
    if tokenizer is None:
        raise UsageError(f"{model} has no tokenizer", "put the tokenizer's files beside the weights")
    _check_seq(seq, header.config.max_seq_len)
    linted = lint_records(read_records(data, settings), tokenizer, settings, seq, anyway=anyway)
    shown = [
        PreviewedRecord(place=record.place, kind=record.kind, spans=_spans(record, tokenizer))
        for record in linted.records[:count]
    ]
    error = refusal(linted)
    is_refused = error is not None and not (anyway and linted.records)
    return Preview(records=linted.counts, previewed=shown), error if is_refused else None


def record_rows(lang: str, counts: RecordCounts) -> list[tuple[str, str]]:
    """How many records are used and dropped, and what the lint found, how often and where."""
    found = (("dropped", counts.reasons), ("doubted", counts.doubts))
    used = label(lang, "run.records", used=f"{counts.used:,}", dropped=f"{counts.dropped:,}")
    return [
        (label(lang, "run.row.records"), used),
        *(
            (label(lang, f"run.row.{verdict}", reason=reason), f"{count:,} ({', '.join(counts.examples[reason])})")
            for verdict, reasons in found
            for reason, count in reasons.items()
        ),
    ]


def record_flags(*, fields: str | None, loss: str | None) -> dict[str, str]:
    """The settings of records that flags give; None is a flag not given.

    Args:   fields: the names of a prompt's and its completion's field, joined by a comma.
    Errors: UsageError for anything but two names.
    """
    table = {} if loss is None else {"loss": loss}
    if fields is not None:
        names = [name.strip() for name in fields.split(",")]
        if len(names) != 2 or not all(names):
            raise UsageError(f"--fields: expected two names joined by a comma, got {fields!r}", "question,answer")
        table |= {"prompt": names[0], "completion": names[1]}
    return table


def _read(paths: Sequence[Path], settings: RecordSettings, tokenizer: Tokenizer, seq: int, *, anyway: bool) -> Linted:
    linted = lint_records(read_records(paths, settings), tokenizer, settings, seq, anyway=anyway)
    error = refusal(linted)
    if error is not None and not (anyway and linted.records):
        raise error
    return linted


def _check_seq(seq: int, context: int) -> None:
    if seq > context:
        raise UsageError(f"training.seq: expected at most the context of {context}, got {seq}", "shorten --seq")


def _hold_out(items: list[_Item]) -> tuple[list[_Item], list[_Item]]:
    cut = len(items) - max(1, len(items) // _HELD_OUT_SHARE)
    return items[:cut], items[cut:]


def _spans(record: EncodedRecord, tokenizer: Tokenizer) -> list[Span]:
    cuts = np.flatnonzero(np.diff(record.learn)) + 1
    return [
        Span(
            text=tokenizer.decode_bytes(ids.tolist()).decode("utf-8", errors="replace"),
            tokens=len(ids),
            is_learned=bool(learn[0]),
        )
        for ids, learn in zip(np.split(record.ids, cuts), np.split(record.learn, cuts), strict=True)
    ]
