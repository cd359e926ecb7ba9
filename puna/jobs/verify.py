"""`puna weights verify`: do two checkpoints of any formats say the same?

Both read the same prompts, one model after the other in memory: logits at every position, and a greedy continuation of
each prompt. They agree when the largest difference of logits is at most the tolerance times the largest logit, and when
their tokenizers give the prompts the same ids, know the same special tokens, and end a text with the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.errors import UsageError
from puna.evaluation.agreement import compare, logits_of
from puna.generation.decode import greedy_ids
from puna.jobs.load import LoadedModel, find_base, find_model, is_adapter, load
from puna.jobs.machine import choose_device
from puna.jobs.proof_texts import PROOF_TEXTS
from puna.text.corpus import read_documents
from puna.weights.headers import read_config
from puna.weights.meta import MetaSettings

__all__ = ["TOLERANCE", "VerifyResult", "verify"]

TOLERANCE = 1e-4
_PROMPTS, _PROMPT_TOKENS, _GREEDY_TOKENS = 8, 200, 32
_FEW = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What `puna weights verify --json` prints.

    max_logit_difference is to be judged beside largest_logit, A's. greedy_tokens_equal of greedy_tokens ids are the same
    before the first difference of each prompt. tokenizers_agree: None where one of the two has no tokenizer.
    """

    agree: bool
    max_logit_difference: float
    largest_logit: float
    tolerance: float
    kl_nats: float
    top1_agreement: float
    greedy_tokens_equal: int
    greedy_tokens: int
    tokenizers_agree: bool | None
    tokens: int
    notices: tuple[str, ...]


def verify(
    first: str | Path,
    second: str | Path,
    *,
    adapter_a: str | Path | None = None,
    adapter_b: str | Path | None = None,
    prompts: str | Path | None = None,
    tolerance: float = TOLERANCE,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    meta: MetaSettings | None = None,
    seed: int = 0,
) -> VerifyResult:
    """Load one after the other and compare what they say.

    Args:   prompts: a file; its first eight documents are read. seed: of the ids where there is no tokenizer.

    Errors: UsageError: other vocabularies, a tolerance below 0. BadData, FormatError.
    """
    if not 0 <= tolerance < float("inf"):
        raise UsageError(f"tolerance: expected a number of at least 0, got {tolerance}", "1e-4 suits float32")
    texts = PROOF_TEXTS if prompts is None else tuple(item.text for item in read_documents([Path(prompts)]).documents)
    place = choose_device(device)
    settings: dict[str, Any] = {"device": place, "dtype": dtype, "meta": meta}
    vocab_size, most = _common_ground(first, second, meta)
    a = load(first, adapter=adapter_a, **settings)
    ids_a, ends_a, notices = _ids(a, texts[:_PROMPTS]), _specials(a), a.notices
    rows = _rows(ids_a, vocab_size, most, seed)
    logits_a, greedy_a = [logits.float().cpu() for logits in _logits(a, rows)], _greedy(a, rows)
    del a
    b = load(second, adapter=adapter_b, **settings)
    ids_b = _ids(b, texts[:_PROMPTS])
    agreement = compare(logits_a, (logits.float().cpu() for logits in _logits(b, rows)))
    tokenizers_agree = None if ids_a is None or ids_b is None else (ids_a, ends_a) == (ids_b, _specials(b))
    is_close = agreement.max_logit_difference <= tolerance * agreement.largest_logit
    return VerifyResult(
        agree=is_close and tokenizers_agree is not False,
        max_logit_difference=agreement.max_logit_difference,
        largest_logit=agreement.largest_logit,
        tolerance=tolerance,
        kl_nats=agreement.kl_nats,
        top1_agreement=agreement.top1_agreement,
        greedy_tokens_equal=sum(map(_common, greedy_a, _greedy(b, rows))),
        greedy_tokens=sum(map(len, greedy_a)),
        tokenizers_agree=tokenizers_agree,
        tokens=sum(map(len, rows)),
        notices=(*notices, *b.notices, *_doubts(rows)),
    )


def _ids(loaded: LoadedModel, texts: Sequence[str]) -> list[list[int]] | None:
    """Each text in a model's own ids; None where it has no tokenizer."""
    return [loaded.tokenizer.encode(text, bos=True) for text in texts] if loaded.has_tokenizer else None


def _specials(loaded: LoadedModel) -> tuple[dict[str, int], int | None, tuple[int, ...]] | None:
    """Special tokens, and which of them begin and end a text."""
    if not loaded.has_tokenizer:
        return None
    tokenizer = loaded.tokenizer
    return tokenizer.specials, tokenizer.bos_id, tokenizer.eos_ids


def _rows(ids: list[list[int]] | None, vocab_size: int, most: int, seed: int) -> list[list[int]]:
    """What both models read, cut so that a continuation fits both contexts; seeded ids where there is no tokenizer."""
    if ids is None:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(vocab_size, (_PROMPTS, most), generator=generator).tolist()
    return [row[:most] for row in ids if row]


def _doubts(rows: Sequence[Sequence[int]]) -> Iterator[str]:
    """Why agreement may say little."""
    if (count := sum(map(len, rows))) < _FEW:
        yield f"only {count} positions were compared, which says little: the prompts or a model's context are short"


def _common_ground(first: str | Path, second: str | Path, meta: MetaSettings | None) -> tuple[int, int]:
    """The vocabulary of both, and the longest prompt that leaves room in both contexts. Errors: UsageError."""
    a, b = _config(first, meta), _config(second, meta)
    if b.vocab_size != a.vocab_size:
        raise UsageError(
            f"{second}: expected {a.vocab_size} ids like {first}, got {b.vocab_size}",
            "only models of one vocabulary can say the same",
        )
    return a.vocab_size, max(1, min(_PROMPT_TOKENS, min(a.max_seq_len, b.max_seq_len) - _GREEDY_TOKENS))


def _config(path: str | Path, meta: MetaSettings | None) -> ModelConfig:
    return read_config(find_base(path) if is_adapter(Path(path)) else find_model(path), meta)


def _logits(loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    device = loaded.llama.device
    return logits_of(loaded.llama, (torch.tensor([row], device=device) for row in rows))


def _greedy(loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    context = loaded.config.max_seq_len
    return [greedy_ids(loaded.llama, row, min(_GREEDY_TOKENS, context - len(row))) for row in rows]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids are the same before the first difference."""
    return next((index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
