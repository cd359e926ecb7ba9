"""How RoPE's frequencies change so that a model reaches beyond the length it was trained on.

Each choice maps the plain frequencies theta_j = base^(-2j/head_dim) to the ones in use; the model is unchanged otherwise.
Sources: linear, arXiv:2306.15595; llama3, the public llama-models code (factor 8 for 3.1, 32 for 3.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from puna.errors import UsageError

__all__ = ["LinearScaling", "Llama3Scaling", "NoScaling", "RopeScaling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoScaling:
    """The plain frequencies."""

    kind: Literal["none"] = "none"

    def rescale(self, frequencies: Sequence[float]) -> list[float]:
        """Radians per position, one per head-coordinate pair."""
        return list(frequencies)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Every frequency divided by the factor: positions are interpolated."""

    kind: Literal["linear"] = "linear"
    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def rescale(self, frequencies: Sequence[float]) -> list[float]:
        """Radians per position, one per head-coordinate pair."""
        return [frequency / self.factor for frequency in frequencies]


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Short waves kept, long waves divided by the factor, a linear blend between."""

    kind: Literal["llama3"] = "llama3"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise UsageError(
                "rope_scaling: expected 0 < low_freq_factor < high_freq_factor, "
                f"got {self.low_freq_factor} and {self.high_freq_factor}",
                "Llama 3 uses 1 and 4",
            )

    def rescale(self, frequencies: Sequence[float]) -> list[float]:
        """Radians per position, one per head-coordinate pair."""
        return [self._rescale(frequency) for frequency in frequencies]

    def _rescale(self, frequency: float) -> float:
        turns = self.original_max_seq_len * frequency / (2 * math.pi)
        if turns > self.high_freq_factor:
            return frequency
        if turns < self.low_freq_factor:
            return frequency / self.factor
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return (1 - blend) * frequency / self.factor + blend * frequency


RopeScaling = NoScaling | LinearScaling | Llama3Scaling


def _check_factor(factor: float) -> None:
    if not factor >= 1:
        raise UsageError(f"rope_scaling.factor: expected at least 1, got {factor}", "it is new context length over old")
