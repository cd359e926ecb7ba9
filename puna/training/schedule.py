"""The learning rate over a run: a linear rise, then half a cosine down to a small share of the peak.

Source: Loshchilov & Hutter 2016, arXiv:1608.03983.
"""

import math

from puna.training.config import TrainingConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """The rate for the step that ends at `progress` (0 to 1) of the budget."""
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    through = min(1.0, (progress - config.warmup) / (1 - config.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * through))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)
