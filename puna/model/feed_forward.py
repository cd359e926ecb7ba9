"""SwiGLU: y = W_down (silu(W_gate x) * (W_up x)).

Source: Shazeer 2020, arXiv:2002.05202.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from puna.arch.config import ModelConfig
from puna.model.linears.group import project_together

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """The gated feed-forward network of one layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Args: x_BTD. Returns: the same shape."""
        gate_BTF, up_BTF = project_together(x_BTD, self.gate_proj, self.up_proj)
        return self.down_proj(F.silu(gate_BTF) * up_BTF)
