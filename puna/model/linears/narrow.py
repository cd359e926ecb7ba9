"""A dense 16-bit Linear beside a float32 stream: half the memory, float32 products, for processors that lack 16-bit ones."""

from torch import Tensor, nn

from puna.model.linears.group import dense_products

__all__ = ["NarrowLinear"]


class NarrowLinear(nn.Linear):
    """A Linear whose weight is made as wide as its input for each product, forward and back, and never kept so."""

    def __init__(self, weight_oi: Tensor) -> None:
        super().__init__(weight_oi.shape[1], weight_oi.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight_oi, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out) in x's dtype, or autocast's."""
        return dense_products(x, self.weight)[0]
