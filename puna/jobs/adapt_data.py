"""The records of an adaptation, from files to packed rows: those to learn from, and those held out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from puna.adaptation.records import Record, RecordCounts, Row, encode_records, pack_records, read_records
from puna.errors import BadData, UsageError
from puna.jobs.load import LoadedModel

__all__ = ["pack_data"]

_HELD_OUT_SHARE = 10

_Item = TypeVar("_Item")


def pack_data(
    data: Sequence[Path], validation: Path | None, loaded: LoadedModel, *, seq: int, seed: int
) -> tuple[list[Row], list[Row], RecordCounts]:
    """Packed rows to learn from and held-out rows: a file of its own, or the last tenth of the records.

    A long text alone gives the last tenth of its pieces of `seq` tokens. Errors: BadData, UsageError.
    """
    tokenizer = loaded.tokenizer
    if seq > loaded.config.max_seq_len:
        raise UsageError(
            f"training.seq: expected at most the context of {loaded.config.max_seq_len}, got {seq}", "shorten --seq"
        )
    records, counts = read_records(data)
    held_out: list[Record] = []
    if validation is not None:
        held_out, _ = read_records([validation])
    elif len(records) > 1:
        records, held_out = _hold_out(records)
    learned, judged = (list(encode_records(part, tokenizer, seq)) for part in (records, held_out))
    if not judged:
        learned, judged = _hold_out(learned)
    if not (learned and judged):
        raise BadData(f"{counts.used} records are too few to learn from and to hold one out", "add records")
    return pack_records(learned, seq, seed), pack_records(judged, seq, seed), counts


def _hold_out(items: list[_Item]) -> tuple[list[_Item], list[_Item]]:
    cut = len(items) - max(1, len(items) // _HELD_OUT_SHARE)
    return items[:cut], items[cut:]
