"""The likelihood of a text under a model."""

from dataclasses import dataclass
from pathlib import Path

import torch

from puna.evaluation.perplexity import Likelihood, evaluate_text
from puna.jobs.load import load
from puna.jobs.machine import choose_device
from puna.planning.settings import Base
from puna.text.corpus import read_documents

__all__ = ["EvaluateResult", "evaluate", "evaluate_result"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateResult:
    """What `puna evaluate --json` prints."""

    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    bits_per_character: float
    tokens: int
    tokens_per_second: float


def evaluate(
    model: str | Path,
    text: str | Path,
    *,
    adapter: str | Path | None = None,
    window: int | None = None,
    stride: int | None = None,
    base: Base | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
) -> EvaluateResult:
    """Windows of `window` ids, each preceded by BOS if the tokenizer has one; the mean over all ids.

    Args:   base, dtype: as those of load.
    Errors: BadData, UsageError, FormatError.
    """
    documents = read_documents([Path(text)]).documents
    loaded = load(model, adapter=adapter, device=choose_device(device), base=base, dtype=dtype)
    texts = [document.text for document in documents]
    return evaluate_result(evaluate_text(loaded.llama, loaded.tokenizer, *texts, window=window, stride=stride))


def evaluate_result(likelihood: Likelihood) -> EvaluateResult:
    """A likelihood in the units that people compare."""
    return EvaluateResult(
        nats_per_token=likelihood.nats_per_token,
        perplexity=likelihood.perplexity,
        bits_per_byte=likelihood.bits_per_byte,
        bits_per_character=likelihood.bits_per_character,
        tokens=likelihood.tokens,
        tokens_per_second=likelihood.tokens_per_second,
    )
