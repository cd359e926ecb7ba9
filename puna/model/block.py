"""One layer of a Llama: u = x + attention(norm(x)); y = u + feed_forward(norm(u)).

Source: pre-norm residual blocks, Xiong et al. 2020, arXiv:2002.04745.
"""

from torch import Tensor, nn

from puna.arch.config import ModelConfig
from puna.model.attention import Attend, Attention, KeyValueStore
from puna.model.feed_forward import FeedForward
from puna.model.norms import RMSNorm

__all__ = ["Block"]


class Block(nn.Module):
    """Attention, then feed-forward, each normalised first and added to the stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, x_BTD: Tensor, cos_BTP: Tensor, sin_BTP: Tensor, attend: Attend, cache: KeyValueStore | None
    ) -> Tensor:
        """Args: as Attention.forward. Returns: the stream after this layer."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm.derived(x_BTD), cos_BTP, sin_BTP, attend, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm.derived(x_BTD))
