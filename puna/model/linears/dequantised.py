"""A product with a weight that is made wide for it and dropped after it: stored narrow, multiplied as any dense one.

    y = x W^T,  dx = dy W

The way back makes the weight anew from what is stored: autograd's own product would keep every layer's wide copy.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.model.linears.kind import LinearKind, product_type

__all__ = ["DequantisedLinear", "dequantised_product"]


class DequantisedLinear(LinearKind):
    """A frozen weight of few bits, all of it in buffers; it computes what its dense weight does."""

    @abstractmethod
    def widen(self, dtype: torch.dtype, *stored: Tensor) -> Tensor:
        """The weight (d_out, d_in) in a type. Args: stored: this Linear's buffers."""

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out) in x's dtype, or autocast's."""
        return dequantised_product(x, self.widen, *self.buffers())

    def transposed(self, x: Tensor) -> Tensor:
        """x W, by the transposed weight. Args: x (..., d_out). Returns: (..., d_in)."""
        return dequantised_product(x, self._transposed, *self.buffers())

    def dense_weight(self) -> Tensor:
        """The float32 weight that is stored, (d_out, d_in)."""
        return self.widen(torch.float32, *self.buffers())

    def _transposed(self, dtype: torch.dtype, *stored: Tensor) -> Tensor:
        return self.widen(dtype, *stored).T


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
