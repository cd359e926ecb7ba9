"""Codecs on plain tensors: int8 with one scale for each row.

    q = round(w / s), s = max|w| / 127, for each output row of a weight and for each token of an activation

Sources: Dettmers et al. 2022, arXiv:2208.07339; docs/math.md 1.17.
"""

import torch
from torch import Tensor

__all__ = ["dequantize_rows_int8", "quantize_rows_int8"]


def quantize_rows_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row (last axis) to 255 levels. Returns: int8 of x's shape, and float32 scales (..., 1); zero rows give 0."""
    rows = x.float()
    scale = rows.abs().amax(-1, keepdim=True) / 127
    quantized = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_()
    return quantized.to(torch.int8), scale


def dequantize_rows_int8(quantized: Tensor, scale: Tensor) -> Tensor:
    """The float32 values that the codes stand for."""
    return quantized.float() * scale
