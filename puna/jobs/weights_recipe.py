"""The `[weights]` section of a recipe: what a checkpoint leaves unsaid. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from puna.jobs.recipe import apply_settings, fill, read_recipe
from puna.weights.meta import MetaSettings

__all__ = ["WeightsRecipe", "weights_recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRecipe:
    """Settings of `puna weights`: `--set weights.meta_max_seq_len=4096`."""

    weights: MetaSettings = field(default_factory=MetaSettings)


def weights_recipe(recipe: Path | None, settings: Sequence[str]) -> WeightsRecipe:
    """Defaults < recipe file < settings. Errors: UsageError."""
    return fill(WeightsRecipe, apply_settings({} if recipe is None else read_recipe(recipe), settings))
