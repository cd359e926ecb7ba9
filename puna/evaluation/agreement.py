"""How far two models are apart: nats added on the same windows, with their error; and their logits side by side.

    mean = sum d_i / sum n_i;   se^2 = k/(k-1) sum (d_i - mean n_i)^2 / (sum n_i)^2

d_i are the nats that window i gained, n_i its tokens, k the windows: the ratio estimator (Cochran, Sampling Techniques,
1977, section 6.3), which for windows of one size is the paired t-test. Windows differ in difficulty far more than the
models do on one window: pairing removes that part of the error.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from puna.errors import BadData, NonFiniteLoss, UsageError
from puna.evaluation.perplexity import Likelihood
from puna.model.llama import Llama

__all__ = ["Agreement", "Difference", "added_nats", "compare", "compare_logits", "logits_of", "student_t"]

_CHUNK_LOGITS = 1 << 21
_FEWEST_WINDOWS = 3  # fewer leave the interval without meaning: Student's t at 95 % is 12.7 for two windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Nats per token that a change added (negative: won), with its 95 % interval from `low` to `high`."""

    mean: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Two models on the same ids.

    max_logit_difference: over all positions and tokens; to be judged beside largest_logit, the first model's.
    kl_nats: mean over positions of KL(first || second).
    top1_agreement: the share of positions where both find the same token likeliest.
    """

    max_logit_difference: float
    largest_logit: float
    kl_nats: float
    top1_agreement: float


def added_nats(before: Likelihood, after: Likelihood) -> Difference:
    """Nats per token of `after` less those of `before`, paired over windows and weighted by their tokens.

    Raises: UsageError: not the same windows. BadData: fewer than three of them.
    """
    if before.window_tokens != after.window_tokens:
        raise UsageError(
            f"added nats: expected the same windows, got {before.tokens} tokens in {len(before.window_tokens)} "
            f"and {after.tokens} in {len(after.window_tokens)}",
            "evaluate both models on the same text with the same tokenizer and window",
        )
    windows, tokens = len(before.window_tokens), before.tokens
    if windows < _FEWEST_WINDOWS:
        raise BadData(
            f"added nats: expected at least {_FEWEST_WINDOWS} windows, got {windows}",
            "evaluate on a longer text, or with a shorter window",
        )
    gains = [b - a for a, b in zip(before.window_nats, after.window_nats, strict=True)]
    mean = math.fsum(gains) / tokens
    squares = math.fsum((gain - mean * n) ** 2 for gain, n in zip(gains, before.window_tokens, strict=True))
    error = math.sqrt(squares * windows / (windows - 1)) / tokens
    reach = student_t(windows - 1) * error
    return Difference(mean=mean, standard_error=error, low=mean - reach, high=mean + reach)


def compare_logits(first: Llama, second: Llama, ids_BT: Tensor) -> Agreement:
    """The logits of two models of one vocabulary on the same ids.

    Raises: NonFiniteLoss: a logit is NaN or infinite.
    """
    return compare(logits_of(first, ids_BT.split(1)), logits_of(second, ids_BT.split(1)))


@torch.inference_mode()
def logits_of(model: Llama, rows_1T: Iterable[Tensor]) -> Iterator[Tensor]:
    """A model's logits on rows of ids, a chunk of a row's tokens at a time, (C, V)."""
    chunk = max(1, _CHUNK_LOGITS // model.config.vocab_size)
    for ids_1T in rows_1T:
        for hidden_CD in model.hidden(ids_1T)[0].split(chunk):
            yield model.lm_head(hidden_CD)


@torch.inference_mode()
def compare(first_CV: Iterable[Tensor], second_CV: Iterable[Tensor]) -> Agreement:
    """The same chunks of two models' logits, one beside the other.

    Raises: NonFiniteLoss: a logit is NaN or infinite.
    """
    difference = largest = kl = torch.zeros((), dtype=torch.float64)
    same = tokens = 0
    for first, second in zip(first_CV, second_CV, strict=True):
        p_CV, q_CV = first.double(), second.double()
        difference = difference.maximum((p_CV - q_CV).abs().max().cpu())
        largest = largest.maximum(p_CV.abs().max().cpu())
        same += int((p_CV.argmax(-1) == q_CV.argmax(-1)).sum())
        tokens += len(p_CV)
        p_CV, q_CV = p_CV.log_softmax(-1), q_CV.log_softmax(-1)
        kl = kl + (p_CV.exp() * (p_CV - q_CV)).sum().cpu()
    if not math.isfinite(difference):  # NaN would pass every check against a tolerance
        raise NonFiniteLoss("compared logits: expected finite numbers, got NaN or infinity", "try --precision float32")
    return Agreement(
        max_logit_difference=float(difference),
        largest_logit=float(largest),
        kl_nats=float(kl) / tokens,
        top1_agreement=same / tokens,
    )


def student_t(freedom: float) -> float:
    """The two-sided 95 % point of Student's t, within 1 % from 2 degrees of freedom, 0.1 % from 4.

    Source: Abramowitz & Stegun 1964, 26.7.5, the expansion about the normal distribution.
    """
    z = NormalDist().inv_cdf(0.975)
    return (
        z
        + (z**3 + z) / 4 / freedom
        + (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / freedom**3
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160 / freedom**4
    )
