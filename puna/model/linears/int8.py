"""An int8 Linear: weights rounded once per output row, activations per token at each call, products in integers.

    y = s_w s_x (W_q x_q), accumulated in int32, exact for d_in <= 133,144

Source: Dettmers et al. 2022, arXiv:2208.07339, without its outlier path; docs/math.md 1.17.
"""

import torch
from torch import Tensor

from puna.model.linears.kind import LinearKind
from puna.model.quantization import dequantize_rows_int8, quantize_rows_int8

__all__ = ["Int8Linear"]

_MULTIPLE = 8  # CUDA's integer product wants sizes in eights and at least 17 rows


class Int8Linear(LinearKind):
    """Inference only: no gradient flows through the rounding."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight_oi: Tensor, scale_o1: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_oi.shape
        self.register_buffer("weight", weight_oi)
        self.register_buffer("scale", scale_o1)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out) in x's dtype."""
        x_q, x_scale = quantize_rows_int8(x.reshape(-1, self.in_features))
        y = _integer_product(x_q, self.weight).float() * x_scale * self.scale.T
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def dense_weight(self) -> Tensor:
        """The float32 weight that the codes stand for, (d_out, d_in)."""
        return dequantize_rows_int8(self.weight, self.scale)

    @classmethod
    def from_dense(cls, weight_oi: Tensor) -> "Int8Linear":
        """Round a weight."""
        return cls(*quantize_rows_int8(weight_oi.detach()))


def _integer_product(x_Ni: Tensor, weight_oi: Tensor) -> Tensor:
    """x W^T in int32; on CUDA the rows are padded to what its kernel accepts."""
    if not x_Ni.is_cuda:
        return torch._int_mm(x_Ni, weight_oi.T)
    rows = len(x_Ni)
    padded = max(32, -(-rows // _MULTIPLE) * _MULTIPLE)
    x_padded = torch.nn.functional.pad(x_Ni, (0, 0, 0, padded - rows))
    return torch._int_mm(x_padded, weight_oi.T)[:rows]
