"""An input table of fewer directions: e_v = mean + z_v R, Z (V, K), R (K, D), mean (D); K (V + D) + D numbers for V D.

A tied head shares Z and R. It has no mean: h . mean would move the logits of all tokens alike, which no softmax sees.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.model.linears.low_rank import LowRankLinear

__all__ = ["FactoredEmbedding"]


class FactoredEmbedding(nn.Module):
    """A lookup in Z and a product with R."""

    def __init__(self, Z_VK: Tensor, R_KD: Tensor, mean_D: Tensor) -> None:
        super().__init__()
        self.Z = nn.Parameter(Z_VK)
        self.R = nn.Parameter(R_KD)
        self.mean = nn.Parameter(mean_D)

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return len(self.R)

    @property
    def weight(self) -> Tensor:
        """What says of which type and where the table is: Z."""
        return self.Z

    def forward(self, ids: Tensor) -> Tensor:
        """Args: ids (...). Returns: (..., D)."""
        return self.mean + F.embedding(ids, self.Z) @ self.R

    def dense_weight(self) -> Tensor:
        """The float32 table, (V, D)."""
        return self.mean.detach().float() + self.Z.detach().float() @ self.R.detach().float()

    def head(self) -> LowRankLinear:
        """A tied head: its factors are these, not copies."""
        linear = LowRankLinear(self.Z, self.R)
        linear.U, linear.V = self.Z, self.R
        return linear

    @classmethod
    def empty(cls, vocabulary: int, dim: int, rank: int) -> "FactoredEmbedding":
        """Unfilled, to be loaded."""
        return cls(torch.empty(vocabulary, rank), torch.empty(rank, dim), torch.empty(dim))
