"""The records of an adaptation, from files to packed rows: those to learn from, and those held out; and a look at them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Protocol

import numpy as np

from puna.adaptation.encoding import EncodedRecord, cut_record
from puna.adaptation.lint import Linted, RecordCounts, lint_records, refusal
from puna.adaptation.records import RecordSettings, read_records
from puna.adaptation.rows import Row, pack_records
from puna.arch.config import ModelConfig
from puna.errors import BadData, UsageError
from puna.jobs.load import find_model
from puna.report.labels import label
from puna.tokens.tokenizer import Tokenizer
from puna.weights.headers import read_header
from puna.weights.vocabulary import tokenizer_of

__all__ = [
    "PackedData",
    "Preview",
    "PreviewedRecord",
    "Reader",
    "Span",
    "file_label",
    "held_out_rows",
    "pack_data",
    "preview",
    "reason_label",
    "record_flags",
    "record_rows",
]

PREVIEWED = 3
_HELD_OUT_SHARE = 10
_ANSWERED = 3
_SMALLER_FILES = "smaller files"  # those of fewer than 10 records, together


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedData:
    """Packed rows to learn from, and those to judge by.

    Attributes: held_out: rows by file. held_out_records: how many records of each file these hold; of one long text alone
                how many pieces. Files of fewer than 10 records count as one. prompts: the held-out records to be
                answered, one of each file in turn. counts: what the lint found.
    """

    rows: list[Row]
    held_out: dict[str, list[Row]]
    held_out_records: dict[str, int]
    prompts: list[EncodedRecord]
    counts: RecordCounts


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


class Reader(Protocol):
    """What of a model records are read by."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids."""

    @property
    def config(self) -> ModelConfig:
        """Its numbers."""


def pack_data(
    data: Sequence[Path],
    validation: Path | None,
    settings: RecordSettings,
    model: Reader,
    *,
    seq: int,
    anyway: bool = False,
) -> PackedData:
    """Packed rows to learn from and held-out rows: files of their own, or the last tenth of each file's records.

    A long text alone gives the last tenth of its pieces of `seq` tokens. Args: anyway: learn whatever the lint says.
    Errors: BadData, UsageError.
    """
    tokenizer = model.tokenizer
    _check_seq(seq, model.config.max_seq_len)
    linted = _read(data, settings, tokenizer, seq, anyway=anyway)
    if validation is not None:
        learned, judged = linted.records, _by_file(_read([validation], settings, tokenizer, seq, anyway=anyway).records)
    elif len(linted.records) > 1:
        learned, judged = _hold_out(linted.records)
    else:
        learned, judged = _hold_out([piece for record in linted.records for piece in cut_record(record, seq)])
    if not (learned and any(judged.values())):
        raise BadData(f"{linted.counts.used} records are too few to learn from and to hold one out", "add records")
    return PackedData(
        rows=pack_records(learned, seq),
        held_out={name: pack_records(records, seq) for name, records in judged.items() if records},
        held_out_records={name: len(records) for name, records in judged.items()},
        prompts=_prompts(judged.values(), model.config.max_seq_len),
        counts=linted.counts,
    )


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
            (
                label(lang, f"run.row.{verdict}", reason=reason_label(lang, reason)),
                f"{count:,} ({', '.join(counts.examples[reason])})",
            )
            for verdict, reasons in found
            for reason, count in reasons.items()
        ),
    ]


def reason_label(lang: str, reason: str) -> str:
    """The lint's reason in a language; in English it is the reason itself."""
    words = re.sub(r" \d+$", "", reason)  # of how many tokens a row is
    name = re.sub(r"\W+", "_", words.lower())
    return label(lang, f"lint.{name}", number=reason.removeprefix(words).strip())


def held_out_rows(lang: str, held_out_records: Mapping[str, int]) -> list[tuple[str, str]]:
    """How many records of each file are held out, as (what, value)."""
    return [
        (label(lang, "run.row.judged", name=file_label(lang, name)), f"{count:,}")
        for name, count in held_out_records.items()
    ]


def file_label(lang: str, name: str) -> str:
    """A file's name; files of fewer than 10 records have one together."""
    return label(lang, "run.smaller_files") if name == _SMALLER_FILES else name


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


def _hold_out(records: Sequence[EncodedRecord]) -> tuple[list[EncodedRecord], dict[str, list[EncodedRecord]]]:
    """All but the last tenth of each file, and that tenth by file; at least one record of all."""
    files = _by_file(records)
    least = 1 if len(files) == 1 else 0
    learned, judged = list[EncodedRecord](), dict[str, list[EncodedRecord]]()
    for name, found in files.items():
        cut = len(found) - max(least, len(found) // _HELD_OUT_SHARE)
        learned += found[:cut]
        judged[name] = found[cut:]
    return learned, judged


def _by_file(records: Sequence[EncodedRecord]) -> dict[str, list[EncodedRecord]]:
    """Records by their file; those of files too small to give a tenth stand together."""
    sizes = Counter(record.file for record in records)
    small = [file for file, size in sizes.items() if size < _HELD_OUT_SHARE]
    found: dict[str, list[EncodedRecord]] = {}
    for record in records:
        is_joined = len(small) > 1 and sizes[record.file] < _HELD_OUT_SHARE
        found.setdefault(_SMALLER_FILES if is_joined else record.file, []).append(record)
    return found


def _prompts(files: Iterable[Sequence[EncodedRecord]], context: int) -> list[EncodedRecord]:
    """The first few records with a prompt that leaves room for an answer, one of each file in turn."""
    asked = ([record for record in records if 0 < record.prompt_tokens < context] for records in files)
    turns = chain.from_iterable(zip_longest(*asked))
    return [record for record in turns if record is not None][:_ANSWERED]


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
