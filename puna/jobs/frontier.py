"""One model made smaller in several ways: size against added nats, all judged on the same text."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from puna.compression.allocation import uniform_ranks
from puna.compression.low_rank import Spectrum, compress_low_rank
from puna.compression.rounding import quantize_int8
from puna.compression.sizes import stored_bytes
from puna.evaluation.agreement import Difference, added_nats
from puna.evaluation.perplexity import Likelihood, evaluate_text
from puna.jobs.factoring import Method, decompositions
from puna.model.llama import Llama
from puna.tokens.tokenizer import Tokenizer

__all__ = ["Compressed", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """One way of making a model smaller, and its price on held-out text; 95 % interval, paired over windows."""

    method: str
    keep: float | None
    bytes: int
    added_nats: float
    low: float
    high: float
    ranks: dict[str, int]


def compare(
    model: Llama,
    tokenizer: Tokenizer,
    windows: Sequence[Tensor],
    before: Likelihood,
    texts: Sequence[str],
    keeps: Sequence[float],
) -> list[Compressed]:
    """Both methods at several sizes, and int8: each on a copy of the model, all judged on the same texts."""
    results = []
    methods: tuple[Method, ...] = ("svd", "whitened")
    for method in methods:
        spectra = dict(decompositions(model, method, windows))
        for keep in keeps:
            results.append(_try(model, tokenizer, before, texts, method, keep, spectra))
    return [*results, _try(model, tokenizer, before, texts, "int8", None, {})]


def _try(
    model: Llama,
    tokenizer: Tokenizer,
    before: Likelihood,
    texts: Sequence[str],
    method: str,
    keep: float | None,
    spectra: Mapping[str, Spectrum],
) -> Compressed:
    smaller = copy.deepcopy(model)
    if keep is None:
        quantize_int8(smaller)
        ranks = {}
    else:
        ranks = compress_low_rank(smaller, spectra.items(), uniform_ranks(model.config, keep)).ranks
    difference: Difference = added_nats(before, evaluate_text(smaller, tokenizer, *texts))
    return Compressed(
        method=method,
        keep=keep,
        bytes=stored_bytes(smaller),
        added_nats=difference.mean,
        low=difference.low,
        high=difference.high,
        ranks=ranks,
    )
