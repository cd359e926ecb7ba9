"""How fast several models read and write on this machine: each in turn, round after round, and the middle of the rounds.

A machine is slower at one moment than at another: taken in turns, all models have their share of that.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from puna.generation.decode import greedy_ids
from puna.model.llama import Llama

__all__ = ["Speed", "measure_speeds"]

_PROMPT_TOKENS, _NEW_TOKENS, _ROUNDS = 128, 32, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second: written one after another, and of a prompt read at once."""

    decode_tokens_per_second: float
    prefill_tokens_per_second: float


def measure_speeds(models: Sequence[Llama], prompt_ids: Sequence[int]) -> list[Speed]:
    """The speed of each model, greedily, with the cache, in batches of one. Args: prompt_ids: as many as there is use for."""
    context = min(model.config.max_seq_len for model in models)
    prompt = list(prompt_ids[: min(_PROMPT_TOKENS, context // 2)])
    new_tokens = min(_NEW_TOKENS, context - len(prompt) - 1)
    for model in models:
        greedy_ids(model, prompt, 2)
    rounds = [[_once(model, prompt, new_tokens) for model in models] for _ in range(_ROUNDS)]
    return [
        Speed(
            decode_tokens_per_second=new_tokens / median(decode for _, decode in times),
            prefill_tokens_per_second=len(prompt) / median(prefill for prefill, _ in times),
        )
        for times in zip(*rounds, strict=True)
    ]


def _once(model: Llama, prompt: Sequence[int], new_tokens: int) -> tuple[float, float]:
    """Seconds to the first id, and for so many more."""
    seconds = []
    for count in (1, 1 + new_tokens):
        began = time.perf_counter()
        greedy_ids(model, prompt, count)
        seconds.append(time.perf_counter() - began)
    return seconds[0], max(seconds[1] - seconds[0], 1e-9)
