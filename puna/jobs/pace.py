"""How fast a run goes: tokens per second over its last steps, and what the machine's products would allow.

    ceiling = FLOP per second of large products / (6 N)

N counts the parameters that stand in products: a token takes 2 N operations forward and 4 N back. The embedding is a
look-up, the head a product, also where both are one matrix; attention's scores are left out, so that a long context
lowers the share. Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
"""

from collections import deque

import torch

from puna.arch.config import ModelConfig
from puna.jobs.doctor import product_flops
from puna.planning.compute import forward_flops
from puna.training.config import Precision
from puna.training.events import StepEvent

__all__ = ["Pace", "token_ceiling"]

_PASSES = 3  # forward, and two products back for each forward one
_STEPS = 20


class Pace:
    """Tokens per second over the last 20 steps that it was told of; of a sitting's first step, over all before it."""

    def __init__(self, steps: int = _STEPS) -> None:
        self._marks: deque[tuple[int, float]] = deque(maxlen=steps + 1)

    def __call__(self, event: StepEvent) -> float:
        """The rate after this step."""
        if self._marks and event.tokens <= self._marks[-1][0]:
            self._marks.clear()  # another run has begun
        self._marks.append((event.tokens, event.seconds))
        tokens, seconds = (0, 0.0) if len(self._marks) == 1 else self._marks[0]
        return (event.tokens - tokens) / max(event.seconds - seconds, 1e-9)


def token_ceiling(config: ModelConfig, precision: Precision, device: torch.device) -> float:
    """Tokens per second at which training would be nothing but products at the rate measured for large ones."""
    forward = forward_flops(config, seq=1)
    return product_flops(precision, device) / (_PASSES * (sum(forward.linears.values()) + forward.head))
