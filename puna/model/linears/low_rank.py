"""A Linear as two factors: y = U (V x), U (d_out, R), V (R, d_in); R (d_out + d_in) numbers instead of d_out d_in."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.model.linears.kind import LinearKind, product_type

__all__ = ["LowRankLinear"]


class LowRankLinear(LinearKind):
    """Two products through a narrow middle; saves below the rank d_out d_in / (d_out + d_in)."""

    def __init__(self, U_oR: Tensor, V_Ri: Tensor) -> None:
        super().__init__()
        self.out_features, self.rank = U_oR.shape
        self.in_features = V_Ri.shape[1]
        self.U = nn.Parameter(U_oR)
        self.V = nn.Parameter(V_Ri)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out); factors stored narrower than x are widened for each product."""
        dtype = product_type(x)
        return F.linear(F.linear(x.to(dtype), self.V.to(dtype)), self.U.to(dtype))

    def dense_weight(self) -> Tensor:
        """U V in float32, (d_out, d_in)."""
        return self.U.detach().float() @ self.V.detach().float()

    @classmethod
    def empty(cls, out_features: int, in_features: int, rank: int) -> "LowRankLinear":
        """Unfilled factors, to be loaded."""
        return cls(torch.empty(out_features, rank), torch.empty(rank, in_features))
