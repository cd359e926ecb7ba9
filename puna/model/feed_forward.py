"""SwiGLU: y = W_down (silu(W_gate x) * (W_up x)); for study other gates, and the plain y = W_down f(W_up x) of 2017.

Sources: Shazeer 2020, arXiv:2002.05202; Vaswani et al. 2017, arXiv:1706.03762, section 3.3.
"""

from torch import Tensor, nn

from puna.arch.config import ModelConfig
from puna.arch.variants import FEED_FORWARDS
from puna.model.activations import ACTIVATIONS, activated, gated
from puna.model.linears.derived import Derived
from puna.model.linears.group import project_together

__all__ = ["FeedForward", "PlainFeedForward", "feed_forward"]


def feed_forward(config: ModelConfig) -> "FeedForward | PlainFeedForward":
    """The network of one layer, of the kind that the config names."""
    return FeedForward(config) if config.is_gated else PlainFeedForward(config)


class FeedForward(nn.Module):
    """The gated feed-forward network of one layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[FEED_FORWARDS[config.ffn]]
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor | Derived) -> Tensor:
        """Args: x_BTD. Returns: the same shape."""
        gate_BTF, up_BTF = project_together(x_BTD, self.gate_proj, self.up_proj)
        return project_together(gated(gate_BTF, up_BTF, self.activation), self.down_proj)[0]


class PlainFeedForward(nn.Module):
    """Two matrices and a function between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[FEED_FORWARDS[config.ffn]]
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor | Derived) -> Tensor:
        """Args: x_BTD. Returns: the same shape."""
        (up_BTF,) = project_together(x_BTD, self.up_proj)
        return project_together(activated(up_BTF, self.activation), self.down_proj)[0]
