"""The text of a study: gathered, its tokenizer learned, cut into shards, once for all arms; and what judges them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from puna.errors import BadData
from puna.jobs.demo_text import first_kind, second_kind
from puna.lab.recipe import LabRecipe
from puna.lab.study import Arm, Study
from puna.model.batch import Batch
from puna.text.corpus import Document, documents_sha256, split_documents
from puna.text.mixture import Mixture, exponent_weights, integer_weights
from puna.tokens.learning import tokenizer_at
from puna.tokens.shards import Shards, shards_at
from puna.training.batches import RowSource, ordered_windows
from puna.training.config import TrainingConfig
from puna.training.rows import cut_rows

__all__ = ["GROUP", "StudyText", "rows_of", "study_text"]

GROUP = 4
"""Windows that follow each other: neighbours are alike, so that a group counts as one observation."""

_JUDGED_GROUPS, _CHOOSING_GROUPS, _FEWEST_GROUPS = 32, 8, 3
_HELD_OUT, _LEAST_HELD_OUT, _SMALL_BYTES, _SMALL_HELD_OUT = 0.04, 4, 1 << 20, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyText:
    """What is learned, and windows of held-out text, which no arm learns from: groups of four that follow each other, spread
    evenly over the text.

    held_out: of each source, as many of each. judged: those that arms are compared on, a batch a group.
    choosing: others of the same sources, by which rates are chosen and curves drawn.
    bytes: of what is learned. sha256: of all documents.
    """

    sources: Sequence[Shards]
    held_out: Sequence[Sequence[Batch]]
    judged: Sequence[Batch]
    choosing: Sequence[Batch]
    bytes: int
    sha256: str


def rows_of(text: StudyText, arm: Arm, config: TrainingConfig) -> RowSource:
    """What an arm learns from, in its order."""
    if arm.lora is not None:
        return RowSource([cut_rows(text.sources[-1], config)], Mixture(weights=(1,)), config)
    weights = exponent_weights([len(shards) for shards in text.sources], arm.exponent)
    return RowSource(
        [cut_rows(shards, config) for shards in text.sources], Mixture(weights=integer_weights(weights)), config
    )


def study_text(recipe: LabRecipe, study: Study, folder: Path) -> StudyText:
    """Gather, split and encode, or find what an earlier sitting made of the same text.

    Errors: BadData: too little text. FormatError, DiskFull.
    """
    kinds = [first_kind(recipe.text)[1]]
    if study.sources > 1:
        kinds.append(second_kind())
    parts = [split_documents(documents, _share(documents), minimum=_LEAST_HELD_OUT) for documents in kinds]
    sha256 = documents_sha256(chain.from_iterable(kinds))
    place = folder / f"text-{sha256[:12]}-{recipe.vocab_size}"
    tokenizer = tokenizer_at(place / "tokenizer", (document.text for document in parts[0][0]), recipe.vocab_size)
    sources = [shards_at(place / f"learned-{at}", part[0], tokenizer) for at, part in enumerate(parts)]
    groups = [
        _groups(shards_at(place / f"held-out-{at}", part[1], tokenizer), recipe.seq) for at, part in enumerate(parts)
    ]
    wanted, judging = study.judged, [found[1::2] for found in groups]  # those between choose
    count = min(_JUDGED_GROUPS // len(wanted), *map(len, judging))
    held_out = [_spread(found, count) for found in judging]
    return StudyText(
        sources=sources,
        held_out=held_out,
        judged=[group for at in wanted for group in held_out[at]],
        choosing=[group for at in wanted for group in _spread(groups[at][0::2], _CHOOSING_GROUPS // len(wanted))],
        bytes=sum(shards.bytes for shards in sources),
        sha256=sha256,
    )


def _share(documents: Sequence[Document]) -> float:
    """Held out: more of a small text, so that there is enough to judge by."""
    size = sum(len(document.text) for document in documents)
    return _HELD_OUT if size > _SMALL_BYTES else _SMALL_HELD_OUT


def _groups(held_out: Shards, seq: int) -> list[Batch]:
    """Windows four by four, what is left over left out. Errors: BadData: too few."""
    groups = [batch for batch in ordered_windows(held_out, seq, GROUP) if len(batch.ids_BT) == GROUP]
    if len(groups) < 2 * _FEWEST_GROUPS:
        needed = 2 * _FEWEST_GROUPS * GROUP
        raise BadData(
            f"held-out text: expected at least {needed} windows of {seq} tokens, got {len(groups) * GROUP}",
            "give more text, or a smaller --seq",
        )
    return groups


def _spread(groups: Sequence[Batch], count: int) -> list[Batch]:
    """So many of them, evenly."""
    many = min(count, len(groups))
    return [groups[at * len(groups) // many] for at in range(many)]
