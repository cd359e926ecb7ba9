"""Texts as vectors under a model, and whether those of adjacent sentences are closer than those of random pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from puna.errors import BadData
from puna.evaluation.embedding import Pool
from puna.evaluation.sentences import adjacent_pairs, judge_pairs
from puna.jobs.load import load
from puna.jobs.machine import choose_device
from puna.planning.settings import Base
from puna.text.reading import holds_lines, read_entries

__all__ = ["EmbedResult", "embed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """What `puna embed --json` prints.

    vectors: one for each of `texts`, `dim` numbers of length 1.
    notices: what was cut, and what was ignored while loading.
    auc, auc_standard_error, pairs: of a judged text; None elsewhere. Pair k is texts 2k and 2k + 1.
    """

    dim: int
    texts: list[str]
    vectors: list[list[float]]
    notices: tuple[str, ...]
    auc: float | None = None
    auc_standard_error: float | None = None
    pairs: int | None = None


def embed(
    model: str | Path,
    texts: Sequence[str] | Path,
    *,
    pool: Pool = "mean",
    judge: bool = False,
    adapter: str | Path | None = None,
    base: Base | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
) -> EmbedResult:
    """The pooled states of each text, at unit length.

    Args:   texts: or a file: each line that is not blank, or each record of a .jsonl or .parquet, is a text.
            judge: the texts, or the file's, are documents of which adjacent sentences are embedded and judged.
            base, dtype: as those of load.
    Errors: BadData, UsageError, FormatError.
    """
    if isinstance(texts, Path):
        texts = _read(texts, whole=judge)
    if judge:
        texts = [sentence for pair in adjacent_pairs(texts) for sentence in pair]
    loaded = load(model, adapter=adapter, device=choose_device(device), base=base, dtype=dtype)
    vectors_ND = loaded.embed(texts, pool)
    result = EmbedResult(
        dim=loaded.config.dim,
        texts=list(texts),
        vectors=vectors_ND.tolist(),
        notices=loaded.notices,
    )
    if not judge:
        return result
    found = judge_pairs(vectors_ND[0::2], vectors_ND[1::2])
    return replace(result, auc=found.auc, auc_standard_error=found.standard_error, pairs=found.pairs)


def _read(path: Path, *, whole: bool) -> list[str]:
    """A file's records; or its lines without the blanks around them, but for those that are blank; or it as a whole.

    Errors: BadData: not a file, no text, or a record that gives none; nothing is left out. MissingExtra.
    """
    if not path.is_file():
        raise BadData(
            f"{path}: expected a file, got {'a folder' if path.is_dir() else 'nothing'}", "name one text file"
        )
    try:
        entries = list(read_entries(path))
    except (OSError, EOFError, ValueError) as error:
        raise BadData(f"{path}: {error}", "give UTF-8 text, or .jsonl or .parquet with a 'text'") from None
    for entry in entries:
        if entry.fault is not None:
            raise BadData(f"{entry.name}: {entry.fault}", "mend it, or take it out")
    if whole or holds_lines(path):
        return [entry.text for entry in entries]
    return [line.strip() for entry in entries for line in entry.text.split("\n") if line.strip()]
