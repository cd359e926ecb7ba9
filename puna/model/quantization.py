"""Codecs on plain tensors: int8 with one scale for each row; NF4, four bits with one scale for each 64 numbers.

    int8  q = round(w / s), s = max|w| / 127, for each output row of a weight and for each token of an activation
    NF4   q = the nearest of 16 levels to w / a, a = max|w| of 64 numbers of the flattened weight;
          double quantisation: a ~ m + s c, m = mean(a), c int8, s = max|a - m| / 127 of 256 maxima
    bytes 0.5 + 1/64 + 4/(64 * 256) = 0.515869 a number, and 4 for m

The levels are quantiles of the normal distribution, 0 and both ends among them. QLoRA's own code rounds the maxima to
8-bit floats; ours are evenly spaced. Sources: Dettmers et al. 2022, arXiv:2208.07339, and 2023, arXiv:2305.14314, section
3; docs/math.md 1.16 and 1.17.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.arch.rounding import NF4_MAXIMA, NF4_NUMBERS

__all__ = [
    "NF4_LEVELS",
    "dequantize_maxima",
    "dequantize_nf4",
    "dequantize_rows_int8",
    "quantize_maxima",
    "quantize_nf4",
    "quantize_rows_int8",
]

_BLOCK, _GROUP = NF4_NUMBERS, NF4_MAXIMA
_SLICE = 1 << 20  # numbers worked on at a time: temporaries of a large weight stay below 25 MB


def quantize_rows_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row (last axis) to 255 levels. Returns: int8 of x's shape, and float32 scales (..., 1); zero rows give 0."""
    rows = x.float()
    scale = rows.abs().amax(-1, keepdim=True) / 127
    quantized = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_()
    return quantized.to(torch.int8), scale


def dequantize_rows_int8(quantized: Tensor, scale: Tensor) -> Tensor:
    """The float32 values that the codes stand for."""
    return quantized.float().mul_(scale)


def _levels() -> tuple[float, ...]:
    """Quantiles at 8 even steps from the last one down to the middle, at 7 below the middle, and 0; over the largest."""
    end = 1 - (1 / 32 + 1 / 30) / 2
    above = [NormalDist().inv_cdf(0.5 + (end - 0.5) * step / 8) for step in range(1, 9)]
    below = [-NormalDist().inv_cdf(0.5 + (end - 0.5) * step / 7) for step in range(7, 0, -1)]
    return tuple(level / above[-1] for level in (*below, 0.0, *above))


NF4_LEVELS = _levels()
"""The 16 values of a code, from -1 to 1; code 7 is 0."""


def quantize_nf4(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round a tensor of any float type and shape. Returns: codes uint8 (ceil(n / 2),), the earlier number in the high half
    of a byte; maxima float32 (ceil(n / 64),). An odd last half holds the code of 0.
    """
    flat = x.reshape(-1)
    codes = torch.empty(-(-len(flat) // 2), dtype=torch.uint8, device=x.device)
    maxima = torch.empty(-(-len(flat) // _BLOCK), dtype=torch.float32, device=x.device)
    for start in range(0, len(flat), _SLICE):
        rows = _filled(flat[start : start + _SLICE].to(torch.float32, copy=True), _BLOCK)
        largest = rows.abs().amax(1, keepdim=True)
        halves = _nearest(rows.div_(largest.where(largest > 0, 1.0)))
        part, blocks = codes[start // 2 : (start + _SLICE) // 2], len(rows)
        part.copy_((halves[:, 0::2] << 4 | halves[:, 1::2]).flatten()[: len(part)])
        maxima[start // _BLOCK : start // _BLOCK + blocks] = largest[:, 0]
    return codes, maxima


def dequantize_nf4(codes: Tensor, maxima: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The values that codes and float32 maxima stand for, formed in float32. Returns: `shape`, `dtype`."""
    out = torch.empty(tuple(shape), dtype=dtype, device=codes.device)
    flat, pairs = out.view(-1), _pairs(codes.device)
    for start in range(0, len(flat), _SLICE):
        part = flat[start : start + _SLICE]
        picked = pairs.index_select(0, codes[start // 2 : (start + _SLICE) // 2].int())
        rows = _filled(picked.view(torch.float32)[: len(part)], _BLOCK)
        rows *= maxima[start // _BLOCK : start // _BLOCK + len(rows), None]
        part.copy_(rows.view(-1)[: len(part)])
    return out


def quantize_maxima(maxima: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Double quantisation. Returns: int8 codes (n,), float32 scales (ceil(n / 256),), the float32 mean ()."""
    mean = maxima.mean()
    codes, scales = quantize_rows_int8(_filled(maxima - mean, _GROUP))
    return codes.view(-1)[: len(maxima)].clone(), scales[:, 0], mean


def dequantize_maxima(codes: Tensor, scales: Tensor, mean: Tensor) -> Tensor:
    """The float32 maxima (n,) that double quantisation left; none below 0, which would turn signs round."""
    rows = dequantize_rows_int8(_filled(codes, _GROUP), scales[:, None])
    return rows.add_(mean).clamp_min_(0).view(-1)[: len(codes)]


def _nearest(scaled: Tensor) -> Tensor:
    """The level nearest to each number: how many borders lie below it; half the time of torch.bucketize."""
    count = torch.zeros(scaled.shape, dtype=torch.uint8, device=scaled.device)
    is_above = torch.empty(scaled.shape, dtype=torch.bool, device=scaled.device)
    for low, high in pairwise(NF4_LEVELS):
        count += torch.gt(scaled, (low + high) / 2, out=is_above).view(torch.uint8)
    return count


def _filled(flat: Tensor, size: int) -> Tensor:
    """Rows of `size` numbers, the last one filled up with zeros."""
    missing = -len(flat) % size
    return (F.pad(flat, (0, missing)) if missing else flat).view(-1, size)


def _pairs(device: torch.device) -> Tensor:
    """Both levels of each of the 256 bytes as the bits of one int64: one lookup gives two numbers."""
    levels = torch.tensor(NF4_LEVELS, dtype=torch.float32, device=device)
    return torch.cartesian_prod(levels, levels).view(torch.int64).view(-1)
