"""A weight of few bits and a low-rank correction of what its rounding lost: y = Q x + L (R x).

Source: Yao et al. 2023, arXiv:2303.08302; docs/compression.md 4.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from puna.model.linears.dequantised import DequantisedLinear
from puna.model.linears.kind import LinearKind, product_type

__all__ = ["CorrectedLinear"]


class CorrectedLinear(LinearKind):
    """Q as it is stored, L (d_out, R) and R (R, d_in) dense. It belongs to the base: an adapter stands beside the sum."""

    def __init__(self, base: DequantisedLinear, L_oR: Tensor, R_Ri: Tensor) -> None:
        super().__init__()
        self.out_features, self.rank = L_oR.shape
        self.in_features = R_Ri.shape[1]
        self.base = base
        self.L = nn.Parameter(L_oR)
        self.R = nn.Parameter(R_Ri)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out) in x's dtype, or autocast's."""
        dtype = product_type(x)
        y: Tensor = self.base(x)
        return y + F.linear(F.linear(x.to(dtype), self.R.to(dtype)), self.L.to(dtype))

    def dense_weight(self) -> Tensor:
        """Q + L R in float32, (d_out, d_in)."""
        return self.base.dense_weight() + self.L.detach().float() @ self.R.detach().float()
