"""Codecs of GGUF's block types on plain tensors: rows of numbers <-> rows of bytes.

    Q8_0  32 numbers   f16 d = max|x| / 127,  32 x i8 round(x / d)                          x = d q
    Q4_0  32 numbers   f16 d = (x of largest magnitude) / -8,  low nibbles x_0..15,
                       high nibbles x_16..31, q = trunc(x / d + 8.5) clipped to 0..15      x = d (q - 8)
    Q4_K  256 numbers  f16 d, f16 m, eight 6-bit scales s and minima t, 128 B of nibbles   x = d s q - m t
    Q6_K  256 numbers  128 B of low nibbles, 64 B of high pairs, 16 x i8 scales s, f16 d   x = d s (q - 32)

The first two are written, all four are read, byte-equal to the reference. x / d is x times the float32 reciprocal of d
before d is rounded to f16, and halves round away from zero, as the reference does. Source: ggml-quants.c; oracle: gguf
0.19.0. Format: docs/formats.md 6.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["dequantize_blocks", "quantize_blocks"]

_SLICE = 1 << 22  # numbers worked on at a time: temporaries of a large matrix stay below 100 MB


def quantize_blocks(kind: str, x: Tensor) -> Tensor:
    """Rows (..., d) of any float type -> codes (..., bytes of a row), uint8. Args: kind: Q8_0 or Q4_0; 32 divides d."""
    encode = {"Q8_0": _encode_q8_0, "Q4_0": _encode_q4_0}[kind]
    return _by_slices(x, 32, lambda block: encode(block.float()), torch.uint8)


def dequantize_blocks(kind: str, codes: Tensor) -> Tensor:
    """Codes (..., bytes of a row), uint8 -> rows (..., d), float32. Args: kind: Q8_0, Q4_0, Q4_K or Q6_K."""
    size, decode = {
        "Q8_0": (34, _decode_q8_0),
        "Q4_0": (18, _decode_q4_0),
        "Q4_K": (144, _decode_q4_k),
        "Q6_K": (210, _decode_q6_k),
    }[kind]
    return _by_slices(codes, size, decode, torch.float32)


def _by_slices(x: Tensor, size: int, convert: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """Apply `convert` to blocks (n, size) of x's last axis, some rows at a time."""
    rows = x.reshape(-1, x.shape[-1])
    blocks = x.shape[-1] // size
    width = convert(rows.new_zeros(1, size)).shape[1]
    out = torch.empty(len(rows), blocks * width, dtype=dtype)
    step = max(1, _SLICE // max(1, x.shape[-1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        out[start : start + step] = convert(part.reshape(-1, size)).view(len(part), -1)
    return out.view(*x.shape[:-1], blocks * width)


def _encode_q8_0(x: Tensor) -> Tensor:
    d = x.abs().amax(1, keepdim=True) / 127
    scaled = x * _reciprocal(d)
    magnitude = scaled.abs()
    whole = magnitude.floor()
    q = scaled.sign() * (whole + (2 * (magnitude - whole)).floor())
    return torch.cat([_to_f16(d), q.to(torch.int8).view(torch.uint8)], dim=1)


def _encode_q4_0(x: Tensor) -> Tensor:
    d = x.gather(1, x.abs().argmax(1, keepdim=True)) / -8
    q = (x * _reciprocal(d) + 8.5).trunc().clamp_(0, 15).to(torch.uint8)
    return torch.cat([_to_f16(d), q[:, :16] | q[:, 16:] << 4], dim=1)


def _decode_q8_0(codes: Tensor) -> Tensor:
    return codes[:, 2:].view(torch.int8).float() * _from_f16(codes[:, :2])


def _decode_q4_0(codes: Tensor) -> Tensor:
    q = torch.cat([codes[:, 2:] & 15, codes[:, 2:] >> 4], dim=1)
    return (q.to(torch.int8) - 8).float() * _from_f16(codes[:, :2])


def _decode_q4_k(codes: Tensor) -> Tensor:
    """Each pair of the eight groups of 32 shares 32 bytes: the first has the low nibbles, the second the high ones."""
    d, m = _from_f16(codes[:, :2]), _from_f16(codes[:, 2:4])
    low, middle, high = codes[:, 4:16].unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], dim=1)
    minima = torch.cat([middle & 63, (high >> 4) | ((middle >> 2) & 48)], dim=1)
    packed = codes[:, 16:].unflatten(1, (4, 1, 32))
    q = torch.cat([packed & 15, packed >> 4], dim=2).flatten(1, 2)
    return ((d * scales.float())[..., None] * q.float() - (m * minima.float())[..., None]).flatten(1)


def _decode_q6_k(codes: Tensor) -> Tensor:
    """Each half of 128 numbers has 64 bytes of nibbles and 32 of pairs; a scale serves 16 numbers."""
    low = codes[:, :128].unflatten(1, (2, 1, 64))
    nibbles = torch.cat([low & 15, low >> 4], dim=2).flatten(1)
    high = codes[:, 128:192].unflatten(1, (2, 1, 32))
    pairs = torch.cat([(high >> shift) & 3 for shift in (0, 2, 4, 6)], dim=2).flatten(1)
    q = (nibbles | pairs << 4).to(torch.int8) - 32
    scales = _from_f16(codes[:, 208:]) * codes[:, 192:208].view(torch.int8).float()
    return (scales[..., None] * q.float().unflatten(1, (16, 16))).flatten(1)


def _reciprocal(d: Tensor) -> Tensor:
    """1 / d; 0 where that is no number, so that a block of zeros gives zeros."""
    inverse = 1 / d
    return torch.where(inverse.isfinite(), inverse, torch.zeros_like(inverse))


def _to_f16(d: Tensor) -> Tensor:
    return d.to(torch.float16).view(torch.uint8)


def _from_f16(data: Tensor) -> Tensor:
    return data.contiguous().view(torch.float16).float()
