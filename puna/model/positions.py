"""RoPE: each pair (i, i + E/2) of a head's coordinates turns by the angle m * theta_i, theta_i = base^(-2i/E).

Scores then depend on the distance of two tokens only. Half-split pairs, as in Hugging Face's Llama.
Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2.
"""

from typing import Any

import torch
from torch import Tensor

from puna.arch.config import ModelConfig

__all__ = ["apply_rope", "rope_angles", "rope_frequencies"]


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


def _rotate(x_BTHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide_BTHE = x_BTHE.to(torch.promote_types(x_BTHE.dtype, torch.float32))
    first, second = wide_BTHE.chunk(2, dim=-1)
    y_BTHE = torch.empty_like(wide_BTHE, memory_format=torch.contiguous_format)
    y_first, y_second = y_BTHE.chunk(2, dim=-1)
    torch.mul(first, cos, out=y_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=y_second).addcmul_(first, sin)
    return y_BTHE.to(x_BTHE.dtype)
