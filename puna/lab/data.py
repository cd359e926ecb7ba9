"""The text of a study: gathered, its tokenizer learned, cut into shards, once for all arms; and what judges them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.errors import BadData
from puna.files import staged_folder
from puna.jobs.demo_text import first_kind, second_kind
from puna.lab.recipe import LabRecipe
from puna.lab.study import Arm, Study
from puna.model.batch import Batch
from puna.text.corpus import Document, split_documents
from puna.text.mixture import Mixture, exponent_weights, integer_weights
from puna.tokens.learning import learn_tokenizer
from puna.tokens.shards import Shards, shards_at
from puna.tokens.tokenizer import Tokenizer, load_tokenizer
from puna.training.batches import RowSource, ordered_windows
from puna.training.config import TrainingConfig
from puna.training.rows import cut_rows

__all__ = ["StudyText", "rows_of", "study_text"]

_JUDGED_WINDOWS, _FEWEST_WINDOWS = 128, 8
_HELD_OUT, _LEAST_HELD_OUT = 0.04, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyText:
    """What is learned, and windows of held-out text in order, which no arm learns from, of each source.

    judged: the windows that arms are compared on. bytes: of what is learned. sha256: of all documents.
    """

    sources: Sequence[Shards]
    held_out: Sequence[Sequence[Batch]]
    judged: Sequence[Batch]
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


def study_text(recipe: LabRecipe, study: Study | None, folder: Path) -> StudyText:
    """Gather, split and encode, or find what an earlier sitting made of the same text.

    Args:   study: None: the first source alone.
    Errors: BadData: too little text. FormatError, DiskFull.
    """
    kinds = [first_kind(recipe.text)[1]]
    if study is not None and study.sources > 1:
        kinds.append(second_kind())
    parts = [split_documents(documents, _HELD_OUT, minimum=_LEAST_HELD_OUT) for documents in kinds]
    sha256 = _sha256(kinds)
    place = folder / f"text-{sha256[:12]}-{recipe.vocab_size}"
    tokenizer = _tokenizer(place / "tokenizer", parts[0][0], recipe.vocab_size)
    sources, held_out = list[Shards](), list[list[Batch]]()
    for number, (learned, judging) in enumerate(parts):
        sources.append(shards_at(place / f"learned-{number}", learned, tokenizer))
        judged = shards_at(place / f"held-out-{number}", judging, tokenizer)
        held_out.append(ordered_windows(judged, recipe.seq, recipe.batch, _JUDGED_WINDOWS // len(parts)))
    wanted = (0,) if study is None else study.judged
    windows = [batch for number in wanted for batch in held_out[number]]
    if sum(len(batch.ids_BT) for batch in windows) < _FEWEST_WINDOWS:
        raise BadData(
            f"held-out text: expected at least {_FEWEST_WINDOWS} windows of {recipe.seq} tokens", "give more text"
        )
    return StudyText(
        sources=sources, held_out=held_out, judged=windows, bytes=sum(shards.bytes for shards in sources), sha256=sha256
    )


def _tokenizer(folder: Path, documents: Sequence[Document], vocab_size: int) -> Tokenizer:
    """Learned from the documents, or read back as an earlier sitting learned it."""
    if not folder.exists():
        learned = learn_tokenizer((document.text for document in documents), vocab_size)
        with staged_folder(folder) as staged:
            learned.save(staged)
    return load_tokenizer(folder)


def _sha256(kinds: Sequence[Sequence[Document]]) -> str:
    digest = hashlib.sha256()
    for documents in kinds:
        for document in documents:
            digest.update(hashlib.sha256(document.text.encode()).digest())
    return digest.hexdigest()
