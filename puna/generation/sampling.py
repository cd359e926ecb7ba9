"""Sampler: logits -> one id. Temperature, then top-k, top-p, min-p: the order and the borders of Hugging Face.

    p = softmax(keep(z / temperature));  keep sets the scores of what a filter drops to -inf

Temperature 0, and top-k 1, take the largest logit. One uniform number is drawn for each token, from the sampler's own
generator, and looked up in the cumulative distribution: the same seed gives the same ids whatever else draws.
Sources: top-k, Fan et al. 2018, arXiv:1805.04833; top-p, Holtzman et al. 2019, arXiv:1904.09751; min-p, Nguyen et al.
2024, arXiv:2407.01082.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from puna.errors import NonFiniteLoss, UsageError

__all__ = ["Sampler", "SamplingSettings"]

_GREEDY_BELOW = 1e-6  # a temperature that float32 scores cannot tell from 0
_USUAL_NUCLEUS = 512  # likeliest tokens that top-p looks at before it sorts all: 1.0 ms against 9.8 at 128,256 tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How to choose the next token; the defaults draw from the model's own distribution.

    temperature: 0 to 2; 0 is greedy.
    top_k: keep the k likeliest tokens (and those equal to the k-th); None: all.
    top_p: keep the fewest likeliest tokens whose probabilities reach this sum; above 0, 1: all.
    min_p: keep the tokens at least this share of the likeliest one's probability; 0: all.
    seed:  a signed 64-bit number.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise _out_of_range("temperature", "0 to 2", self.temperature, "0 always takes the likeliest token")
        if self.top_k is not None and self.top_k < 1:
            raise _out_of_range("top_k", "at least 1", self.top_k, "leave it out to keep every token")
        if not 0 < self.top_p <= 1:
            raise _out_of_range("top_p", "above 0, up to 1", self.top_p, "1 keeps every token")
        if not 0 <= self.min_p <= 1:
            raise _out_of_range("min_p", "0 to 1", self.min_p, "0 keeps every token")
        if not -(2**63) <= self.seed < 2**63:
            raise _out_of_range("seed", "a signed 64-bit number", self.seed, "take a smaller one")


class Sampler:
    """Chooses ids under one request's settings, from its own stream of random numbers."""

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        self._is_greedy = settings.temperature < _GREEDY_BELOW or settings.top_k == 1
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._filters: list[Callable[[Tensor], Tensor]] = []
        if settings.top_k is not None:
            self._filters.append(partial(_keep_top_k, k=settings.top_k))
        if settings.top_p < 1:
            self._filters.append(partial(_keep_top_p, p=settings.top_p))
        if settings.min_p > 0:
            self._filters.append(partial(_keep_min_p, log_share=math.log(settings.min_p)))

    def __call__(self, logits_V: Tensor) -> int:
        """The next id. Raises NonFiniteLoss where the logits are no numbers."""
        if self._is_greedy:
            largest, index = logits_V.max(-1)
            _require_finite(largest)
            return int(index)
        cumulative_V = self.probabilities(logits_V).double().cumsum(-1)
        draw = torch.rand((), dtype=torch.float64, generator=self._generator).to(cumulative_V.device)
        return int(torch.searchsorted(cumulative_V, draw * cumulative_V[-1], right=True))

    def probabilities(self, logits_V: Tensor) -> Tensor:
        """The distribution that ids are drawn from: p_V in float32, 0 where a filter dropped a token.

        Args: logits_V: float32; -inf is allowed (a token that must not come), NaN and +inf are not.
        """
        largest, index = logits_V.max(-1)
        _require_finite(largest)
        if self._is_greedy:
            return torch.zeros_like(logits_V).index_fill_(-1, index, 1.0)
        scores_V = (logits_V - largest) / self.settings.temperature  # from 0 down: no temperature can overflow
        for keep in self._filters:
            scores_V = keep(scores_V)
        return scores_V.softmax(-1)


def _keep_top_k(scores_V: Tensor, k: int) -> Tensor:
    kth = scores_V.topk(min(k, len(scores_V))).values[-1]
    return scores_V.masked_fill(scores_V < kth, -math.inf)


def _keep_top_p(scores_V: Tensor, p: float) -> Tensor:
    """Drop a token when the likelier ones already reach p; the likeliest stays always."""
    probability_V = scores_V.softmax(-1)
    ranked_N, order_N = probability_V.topk(min(_USUAL_NUCLEUS, len(scores_V)))
    if ranked_N.sum() < p:
        ranked_N, order_N = probability_V.sort(descending=True)
    before_N = ranked_N.cumsum(-1) - ranked_N
    kept_N = order_N[before_N < p]
    return torch.full_like(scores_V, -math.inf).index_copy(0, kept_N, scores_V[kept_N])


def _keep_min_p(scores_V: Tensor, log_share: float) -> Tensor:
    """The largest score is 0, so a score is the logarithm of the share of the likeliest token's probability."""
    return scores_V.masked_fill(scores_V < log_share, -math.inf)


def _require_finite(largest: Tensor) -> None:
    if not math.isfinite(largest):
        raise NonFiniteLoss(
            f"the model's logits: expected finite numbers, the largest is {float(largest)}",
            "its weights are damaged, or overflow in 16 bits: try --precision float32",
        )


def _out_of_range(field: str, expected: str, got: object, hint: str) -> UsageError:
    return UsageError(f"{field}: expected {expected}, got {got}", hint)
