"""How RoPE's frequencies change so that a model reaches beyond the length it was trained on.

Each choice maps the plain frequencies theta_j = base^(-2j/head_dim) to the ones in use, and says by how much cos and sin
are multiplied (`amplitude`, 1 for all but YaRN); the model is unchanged otherwise.
Sources: linear, arXiv:2306.15595; llama3, the public llama-models code (factor 8 for 3.1, 32 for 3.2); YaRN,
arXiv:2309.00071, with the ramp that Hugging Face's checkpoints mean, or the paper's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from puna.errors import UsageError

__all__ = ["LinearScaling", "Llama3Scaling", "NoScaling", "RopeScaling", "YarnScaling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoScaling:
    """The plain frequencies."""

    kind: Literal["none"] = "none"
    amplitude: ClassVar[float] = 1.0

    def rescale(self, frequencies: Sequence[float], base: float) -> list[float]:  # noqa: ARG002 - YaRN reads the base
        """Radians per position, one per head-coordinate pair."""
        return list(frequencies)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Every frequency divided by the factor: positions are interpolated."""

    kind: Literal["linear"] = "linear"
    amplitude: ClassVar[float] = 1.0
    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def rescale(self, frequencies: Sequence[float], base: float) -> list[float]:  # noqa: ARG002
        """Radians per position, one per head-coordinate pair."""
        return [frequency / self.factor for frequency in frequencies]


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Short waves kept, long waves divided by the factor, a linear blend between."""

    kind: Literal["llama3"] = "llama3"
    amplitude: ClassVar[float] = 1.0
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

    def rescale(self, frequencies: Sequence[float], base: float) -> list[float]:  # noqa: ARG002
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


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """Pairs that turn often within the old context keep their frequency, pairs that turn seldom are divided by the factor.

    Between beta_fast and beta_slow turns the share kept falls linearly: over the pair's index, as Hugging Face's
    checkpoints mean it, or over its turns, as in the paper (`ramp`). attention_factor None: 0.1 ln(factor) + 1.
    """

    kind: Literal["yarn"] = "yarn"
    factor: float
    original_max_seq_len: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    ramp: Literal["index", "turns"] = "index"

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if not 0 < self.beta_slow < self.beta_fast:
            raise UsageError(
                f"rope_scaling: expected 0 < beta_slow < beta_fast, got {self.beta_slow} and {self.beta_fast}",
                "YaRN uses 1 and 32",
            )
        if not (self.original_max_seq_len > 0 and self.amplitude > 0):
            raise UsageError(
                f"rope_scaling: expected original_max_seq_len and attention_factor above 0, "
                f"got {self.original_max_seq_len} and {self.attention_factor}",
                "leave attention_factor out for 0.1 ln(factor) + 1",
            )

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied by, so that scores keep their spread over a longer context."""
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor

    def rescale(self, frequencies: Sequence[float], base: float) -> list[float]:
        """Radians per position, one per head-coordinate pair."""
        shares = self._kept(frequencies, base)
        return [f * share + f / self.factor * (1 - share) for f, share in zip(frequencies, shares, strict=True)]

    def _kept(self, frequencies: Sequence[float], base: float) -> list[float]:
        """The share of each frequency that is kept, from 1 (fast) to 0 (slow)."""
        if self.ramp == "turns":
            turns = [self.original_max_seq_len * frequency / (2 * math.pi) for frequency in frequencies]
            return [_clip((turn - self.beta_slow) / (self.beta_fast - self.beta_slow)) for turn in turns]
        head_dim = 2 * len(frequencies)
        first, last = (self._index(beta, head_dim, base) for beta in (self.beta_fast, self.beta_slow))
        low, high = max(math.floor(first), 0), min(math.ceil(last), head_dim - 1)
        width = high - low if high != low else 0.001  # Hugging Face's own way around the division by zero
        return [1 - _clip((index - low) / width) for index in range(len(frequencies))]

    def _index(self, turns: float, head_dim: int, base: float) -> float:
        """The pair, as a real number, that makes so many turns within the old context."""
        return head_dim * math.log(self.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(base))


RopeScaling = NoScaling | LinearScaling | Llama3Scaling | YarnScaling


def _clip(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _check_factor(factor: float) -> None:
    if not factor >= 1:
        raise UsageError(f"rope_scaling.factor: expected at least 1, got {factor}", "it is new context length over old")
