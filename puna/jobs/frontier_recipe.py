"""What a frontier is asked to compare."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from puna.jobs.compress_recipe import check_healing
from puna.jobs.factoring import Method
from puna.training.config import TrainingConfig

__all__ = ["FrontierRecipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierRecipe:
    """Which model, fitted to which text and judged by which: None is the last tenth of the calibration documents.

    method: auto is compared with `whitened`, the published baseline, and taken apart; any other stands for itself.
    healing: how one size is trained afterwards, beside a model of that size built from scratch; None: neither is.
    """

    needs_calibration: ClassVar[bool] = True

    model: Path
    calibration: Path
    method: Method = "auto"
    evaluate: Path | None = None
    healing: TrainingConfig | None = None

    def __post_init__(self) -> None:
        if self.healing is not None:
            check_healing(self.healing)
