"""An NF4 Linear: a frozen weight at 0.515869 bytes a number, made dense again for each product and dropped after it.

    y = x W^T,  dx = dy W,  W = levels[codes] * maxima, each number's of its block of 64

Source: Dettmers et al. 2023, arXiv:2305.14314 (QLoRA); docs/math.md 1.16.
"""

import torch
from torch import Tensor

from puna.model.linears.dequantised import DequantisedLinear
from puna.model.quantization import dequantize_maxima, dequantize_nf4, quantize_maxima, quantize_nf4

__all__ = ["Nf4Linear"]


class Nf4Linear(DequantisedLinear):
    """Codes and scales as buffers; the product is formed in the input's type, or autocast's, as a dense Linear's is."""

    codes: Tensor
    maxima: Tensor
    scales: Tensor
    mean: Tensor

    def __init__(self, codes: Tensor, maxima: tuple[Tensor, Tensor, Tensor], shape: tuple[int, int]) -> None:
        """Args: codes: of quantize_nf4. maxima: of quantize_maxima. shape: (d_out, d_in)."""
        super().__init__()
        self.out_features, self.in_features = self._shape = shape
        self.register_buffer("codes", codes)
        for name, part in zip(("maxima", "scales", "mean"), maxima, strict=True):
            self.register_buffer(name, part)

    def widen(self, dtype: torch.dtype, *stored: Tensor) -> Tensor:
        """The weight (d_out, d_in) in a type."""
        codes, maxima, scales, mean = stored
        return dequantize_nf4(codes, dequantize_maxima(maxima, scales, mean), self._shape, dtype)

    @classmethod
    def from_dense(cls, weight_oi: Tensor) -> "Nf4Linear":
        """Round a weight of any float type, on its device."""
        codes, maxima = quantize_nf4(weight_oi.detach())
        return cls(codes, quantize_maxima(maxima), (weight_oi.shape[0], weight_oi.shape[1]))
