"""The text of a study: gathered, its tokenizer learned, cut into shards, once for all arms; and what judges them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.errors import BadData, FormatError
from puna.jobs.demo_text import first_kind
from puna.lab.recipe import LabRecipe
from puna.model.batch import Batch
from puna.text.corpus import Document, split_documents
from puna.tokens.learning import learn_tokenizer
from puna.tokens.shards import Shards, build_shards, open_shards
from puna.training.batches import ordered_windows

__all__ = ["StudyText", "study_text"]

_JUDGED_WINDOWS, _FEWEST_WINDOWS = 128, 8
_HELD_OUT = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyText:
    """What is learned, and windows of held-out text in order, which no arm learns from. sha256: of all documents."""

    shards: Shards
    judged: Sequence[Batch]
    bytes: int
    sha256: str


def study_text(recipe: LabRecipe, folder: Path) -> StudyText:
    """Gather, split and encode, or find what an earlier sitting made of the same text.

    Errors: BadData: too little text. FormatError, DiskFull.
    """
    _, documents = first_kind(recipe.text)
    learned, held_out = split_documents(documents, _HELD_OUT)
    sha256 = _sha256(documents)
    place = folder / f"text-{sha256[:12]}-{recipe.vocab_size}"
    shards = [
        _shards(place / name, part, learned, recipe) for name, part in (("learned", learned), ("held_out", held_out))
    ]
    judged = ordered_windows(shards[1], recipe.seq, recipe.batch, _JUDGED_WINDOWS)
    if sum(len(batch.ids_BT) for batch in judged) < _FEWEST_WINDOWS:
        raise BadData(
            f"held-out text: expected at least {_FEWEST_WINDOWS} windows of {recipe.seq} tokens", "give more text"
        )
    return StudyText(shards=shards[0], judged=judged, bytes=shards[0].bytes, sha256=sha256)


def _shards(folder: Path, documents: Sequence[Document], learned: Sequence[Document], recipe: LabRecipe) -> Shards:
    try:
        return open_shards(folder)
    except FormatError:
        tokenizer = learn_tokenizer((document.text for document in learned), recipe.vocab_size)
        return build_shards(documents, tokenizer, folder)


def _sha256(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document.text.encode()).digest())
    return digest.hexdigest()
