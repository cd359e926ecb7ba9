"""A product with a weight that is made wide for it and dropped after it: stored narrow, multiplied as any dense one.

    y = x W^T,  dx = dy W

The way back makes the weight anew from what is stored: autograd's own product would keep every layer's wide copy.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.model.linears.kind import product_type

__all__ = ["dequantised_product"]


def dequantised_product(x: Tensor, widen: Callable[..., Tensor], *stored: Tensor) -> Tensor:
    """x (..., d_in) -> (..., d_out), in x's type, or autocast's.

    Args: widen: (dtype, *stored) -> the frozen weight (d_out, d_in) in that type; stored: all that is kept of it.
    """
    product: Tensor = _DequantisedProduct.apply(x, widen, *stored)
    return product


class _DequantisedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, widen: Callable[..., Tensor], *stored: Tensor) -> Tensor:
        dtype = product_type(x)
        ctx.save_for_backward(*stored)
        ctx.widen, ctx.x_dtype = widen, x.dtype
        return F.linear(x.to(dtype), widen(dtype, *stored))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = upstream
        stored = ctx.saved_tensors
        return (dy @ ctx.widen(dy.dtype, *stored)).to(ctx.x_dtype), None, *(None for _ in stored)
