"""The learning rate over a run: a linear rise, then down from the peak to a small share of it as the schedule says."""

from puna.training.config import TrainingConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """The rate for the step that ends at `progress` (0 to 1) of the budget."""
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    height = config.schedule.height(min(1.0, (progress - config.warmup) / (1 - config.warmup)))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * height)
