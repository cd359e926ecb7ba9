"""RoPE: each pair (i, i + E/2) of a head's coordinates turns by the angle m * theta_i, theta_i = base^(-2i/E).

Scores then depend on the distance of two tokens only. Half-split pairs, as in Hugging Face's Llama. What it replaced is here
for study: positions added to the stream, computed or learned, and none.
Sources: Su et al. 2021, arXiv:2104.09864, section 3.4.2; Vaswani et al. 2017, arXiv:1706.03762, sections 3.4 and 3.5.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.arch.config import ModelConfig
from puna.arch.variants import PositionKind

__all__ = [
    "POSITIONS",
    "LearnedPosition",
    "NoPosition",
    "RotaryPosition",
    "Rotate",
    "SinusoidalPosition",
    "apply_rope",
    "rope_angles",
    "rope_frequencies",
    "sinusoids",
]

Rotate = Callable[[Tensor], Tensor]
"""What a call does to each layer's queries and keys, x_BTHE -> x_BTHE."""


class NoPosition(nn.Module):
    """Nothing tells where a token stands but the causal mask; what every other kind begins from."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dim = config.dim

    def restore(self, device: torch.device | str) -> None:
        """Make anew what no checkpoint holds, after loading."""

    def add(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:  # noqa: ARG002 - others read the positions
        """What the first layer reads of the embedded tokens."""
        return x_BTD

    def rotation(self, positions_BT: Tensor) -> Rotate:  # noqa: ARG002
        """What is done to queries and keys at these positions, made once for all layers."""
        return _as_it_is


class RotaryPosition(NoPosition):
    """RoPE; positions turn queries and keys in every layer, and the stream does not know them."""

    frequencies_P: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.config = config
        self.register_buffer("frequencies_P", rope_frequencies(config), persistent=False)

    def restore(self, device: torch.device | str) -> None:
        """Form the frequencies on the device."""
        self.frequencies_P = rope_frequencies(self.config).to(device)

    def rotation(self, positions_BT: Tensor) -> Rotate:
        """The rotation by each position's angles."""
        cos_BTP, sin_BTP = rope_angles(self.frequencies_P, positions_BT, self.config.rope_scaling.amplitude)
        return partial(apply_rope, cos_BTP=cos_BTP, sin_BTP=sin_BTP)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryPosition":
        """Move the frequencies, never cast them: rounded to 16 bits they would bend every angle."""
        super()._apply(fn, recurse)
        self.restore(self.frequencies_P.device)
        return self


class SinusoidalPosition(NoPosition):
    """sqrt(D) x + PE(m), as in the Transformer of 2017."""

    def add(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """The embedded tokens, made as large as the sines, and these."""
        return x_BTD * math.sqrt(self.dim) + sinusoids(positions_BT, self.dim).to(x_BTD.dtype)


class LearnedPosition(NoPosition):
    """x + a learned vector for each position up to the context's end."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(config.max_seq_len, config.dim))

    def add(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """The embedded tokens and their positions' vectors."""
        return x_BTD + F.embedding(positions_BT, self.weight)


POSITIONS: dict[PositionKind, type[NoPosition]] = {
    "rope": RotaryPosition,
    "sinusoidal": SinusoidalPosition,
    "learned": LearnedPosition,
    "none": NoPosition,
}


def sinusoids(positions_BT: Tensor, dim: int) -> Tensor:
    """PE_BTD in float32: PE(m, 2j) = sin(m / 10000^(2j/D)), PE(m, 2j+1) = cos of the same."""
    pairs_P = torch.arange(0, dim, 2, dtype=torch.float32, device=positions_BT.device)
    angles_BTP = positions_BT[..., None].float() * 10_000.0 ** (-pairs_P / dim)
    return torch.stack((angles_BTP.sin(), angles_BTP.cos()), dim=-1).flatten(-2)[..., :dim]


def rope_frequencies(config: ModelConfig) -> Tensor:
    """theta_P in float32, radians per position, after the config's RoPE scaling.

    The plain frequencies are formed in float32 like Hugging Face's, so that long contexts agree to the last bit.
    """
    exponents_P = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float() / config.head_dim
    plain_P = 1.0 / config.rope_theta**exponents_P
    return torch.tensor(config.rope_scaling.rescale(plain_P.tolist(), config.rope_theta), dtype=torch.float32)


def rope_angles(frequencies_P: Tensor, positions_BT: Tensor, amplitude: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos_BTP and sin_BTP of every token's angles, times the amplitude (YaRN's; 1 otherwise).

    Formed in float32 whatever the compute dtype: bfloat16 loses whole positions above 256.
    """
    angles_BTP = positions_BT[..., None].float() * frequencies_P
    return angles_BTP.cos() * amplitude, angles_BTP.sin() * amplitude


def apply_rope(x_BTHE: Tensor, cos_BTP: Tensor, sin_BTP: Tensor) -> Tensor:
    """Rotate each head-coordinate pair (i, i + E/2) by its token's angle.

    Args:    cos_BTP, sin_BTP: float32; P = E/2.
    Returns: y_BTHE in x's dtype; the rotation itself is done in float32 or wider.
    """
    return _Rotation.apply(x_BTHE, cos_BTP[..., None, :], sin_BTP[..., None, :])


class _Rotation(torch.autograd.Function):
    """The way back is the rotation by the opposite angle: nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x_BTHE, cos, sin)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(upstream[0], cos, -sin), None, None


def _as_it_is(x_BTHE: Tensor) -> Tensor:
    return x_BTHE


def _rotate(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide_BTHE = x_BTHE.to(torch.promote_types(x_BTHE.dtype, torch.float32))
    first, second = wide_BTHE.chunk(2, dim=-1)
    y_BTHE = torch.empty_like(wide_BTHE, memory_format=torch.contiguous_format)
    y_first, y_second = y_BTHE.chunk(2, dim=-1)
    torch.mul(first, cos, out=y_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=y_second).addcmul_(first, sin)
    return y_BTHE.to(x_BTHE.dtype)
