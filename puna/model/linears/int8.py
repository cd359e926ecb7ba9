"""An int8 Linear: weights rounded once per output row; multiplied in integers, or made wide for each product.

    in integers, x rounded per token:  y = s_w s_x (W_q x_q), in int32, exact for d_in <= 133,144;  dx = W^T dy
    the weight alone rounded:          y = W x,  W = s_w W_q

dx is as if x were not rounded. Integers are faster where a processor has instructions for them, and add x's rounding.
Source: Dettmers et al. 2022, arXiv:2208.07339, without its outlier path; docs/math.md 1.17.
"""

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.model.linears.dequantised import DequantisedLinear
from puna.model.quantization import dequantize_rows_int8, quantize_rows_int8

__all__ = ["Int8Linear", "Int8WeightLinear"]

_MULTIPLE = 8  # CUDA's integer product wants sizes in eights and at least 17 rows
_SLICE = 1 << 20  # numbers rounded at a time: temporaries of a large weight stay below 25 MB


class Int8WeightLinear(DequantisedLinear):
    """A frozen weight in a quarter of float32's bytes; the input stays as it is."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight_oi: Tensor, scale_o1: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_oi.shape
        self.register_buffer("weight", weight_oi)
        self.register_buffer("scale", scale_o1)

    def widen(self, dtype: torch.dtype, *stored: Tensor) -> Tensor:
        """The weight (d_out, d_in) in a type."""
        return dequantize_rows_int8(*stored).to(dtype)

    @classmethod
    def from_dense(cls, weight_oi: Tensor) -> Self:
        """Round a weight of any float type, on its device, some rows at a time: float32 copies of the whole would be larger
        than it is.
        """
        codes = torch.empty(weight_oi.shape, dtype=torch.int8, device=weight_oi.device)
        scale = torch.empty(len(weight_oi), 1, device=weight_oi.device)
        step = max(1, _SLICE // weight_oi.shape[1])
        for start in range(0, len(weight_oi), step):
            rows = slice(start, start + step)
            codes[rows], scale[rows] = quantize_rows_int8(weight_oi[rows].detach())
        return cls(codes, scale)


class Int8Linear(Int8WeightLinear):
    """The same codes and scales, multiplied in integers; the gradient of the input passes straight through its rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out) in x's dtype."""
        y_No: Tensor = _RoundedProduct.apply(x.reshape(-1, self.in_features), self.weight, self.scale)
        return y_No.view(*x.shape[:-1], self.out_features)


class _RoundedProduct(torch.autograd.Function):
    """Without this, autograd would differentiate the scale of x and not x itself."""

    @staticmethod
    def forward(ctx: Any, x_Ni: Tensor, weight_oi: Tensor, scale_o1: Tensor) -> Tensor:
        ctx.save_for_backward(weight_oi, scale_o1)
        x_q, x_scale_N1 = quantize_rows_int8(x_Ni)
        y_No = _integer_product(x_q, weight_oi).float()
        return y_No.mul_(x_scale_N1).mul_(scale_o1.T).to(x_Ni.dtype)  # in place: one output, not three

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        weight_oi = dequantize_rows_int8(*ctx.saved_tensors)
        return upstream[0] @ weight_oi.to(upstream[0].dtype), None, None


def _integer_product(x_Ni: Tensor, weight_oi: Tensor) -> Tensor:
    """x W^T in int32; on CUDA the rows are padded to what its kernel accepts."""
    if not x_Ni.is_cuda:
        return torch._int_mm(x_Ni, weight_oi.T)
    rows = len(x_Ni)
    padded = max(32, -(-rows // _MULTIPLE) * _MULTIPLE)
    x_padded = F.pad(x_Ni, (0, 0, 0, padded - rows))
    return torch._int_mm(x_padded, weight_oi.T)[:rows]
