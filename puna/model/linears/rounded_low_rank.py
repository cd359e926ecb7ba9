"""A low-rank Linear whose factors are of few bits: y = U (V x).

V (R, d_in) is stored by its rows and U by its columns, as U^T (R, d_out): every component has scales of its own, so that no
large one hides a small one, and blocks lie along the widths of the model and never along the rank.
"""

from torch import Tensor

from puna.model.linears.dequantised import DequantisedLinear
from puna.model.linears.kind import LinearKind

__all__ = ["RoundedLowRankLinear"]


class RoundedLowRankLinear(LinearKind):
    """Two products, each factor made wide for its own; several Linears of one input may share V."""

    def __init__(self, U_Ro: DequantisedLinear, V_Ri: DequantisedLinear) -> None:
        """Args: U_Ro: holds U^T."""
        super().__init__()
        self.rank, self.out_features, self.in_features = V_Ri.out_features, U_Ro.in_features, V_Ri.in_features
        self.U = U_Ro
        self.V = V_Ri

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out) in x's dtype, or autocast's."""
        return self.U.transposed(self.V(x))

    def dense_weight(self) -> Tensor:
        """U V in float32, (d_out, d_in)."""
        return self.U.dense_weight().T @ self.V.dense_weight()
