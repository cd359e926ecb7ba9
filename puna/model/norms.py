"""RMSNorm: y = gain * x / sqrt(mean(x^2) + eps), over the features, in float32 or wider.

Source: Zhang & Sennrich 2019, arXiv:1910.07467; eps inside the root, as in Llama.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """Scale each vector to unit root mean square, then by a learned gain per feature."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Args: x_BTD (..., D). Returns: the same shape in x's dtype; cast back before the gain, as Hugging Face does."""
        wide_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        return self.weight * F.rms_norm(wide_BTD, self.weight.shape, eps=self.eps).to(x_BTD.dtype)
