"""What `puna compress` is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from puna.errors import UsageError
from puna.jobs.factoring import Allocation, Method

__all__ = ["CompressRecipe"]

_DEFAULT_KEEP = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressRecipe:
    """What to do to which model. `keep` is the kept share of the stored bits of the block Linears.

    allocation: how it is shared out; None: `greedy` for method auto, `uniform` for a method by its name.
    """

    model: Path
    calibration: Path | None = None
    method: Method = "auto"
    keep: float | None = None
    allocation: Allocation | None = None
    quantize: Literal["int8"] | None = None
    evaluate: Path | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UsageError(f"--keep: expected a share above 0 and at most 1, got {self.keep}", "0.8 keeps 80 %")
        if self.keep is not None and self.quantize is not None:
            raise UsageError("--keep together with --quantize is not built yet", "choose one of them")
        if self.allocation is not None and self.quantize is not None:
            raise UsageError("--allocation together with --quantize is not built yet", "choose one of them")
        if self.allocation == "greedy" and self.calibration is None:
            raise UsageError("--allocation greedy needs --calibration", "what a matrix is worth is measured on it")
        if self.method != "auto" and self.quantize is not None:
            raise UsageError(f"--method {self.method} together with --quantize is not built yet", "choose one of them")
        if self.needs_calibration and self.calibration is None:
            raise UsageError(
                f"--method {self.method} needs --calibration", "name a text of the kind the model will see"
            )
        if self.calibration is None and self.evaluate is None:
            raise UsageError("expected --calibration or --evaluate", "a text is needed to measure the added nats")

    @property
    def needs_calibration(self) -> bool:
        """Whether something is fitted to a text."""
        return self.quantize is None and (self.method != "svd" or self.allocation == "greedy")

    @property
    def wanted(self) -> float | None:
        """The kept share: 0.8 where no other lever is named."""
        return _DEFAULT_KEEP if self.keep is None and self.quantize is None else self.keep
