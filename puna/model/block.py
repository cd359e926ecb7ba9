"""One layer of a Llama: u = x + attention(norm(x)); y = u + feed_forward(norm(u)).

For study, as in 2017: u = norm(x + attention(x)); y = norm(u + feed_forward(u)).
Sources: pre-norm residual blocks, Xiong et al. 2020, arXiv:2002.04745; post-norm, Vaswani et al. 2017, arXiv:1706.03762.
"""

from torch import Tensor, nn

from puna.arch.config import ModelConfig
from puna.arch.variants import Placement
from puna.model.attention import Attend, Attention, KeyValueStore
from puna.model.feed_forward import feed_forward
from puna.model.norms import NORMS
from puna.model.positions import Rotate

__all__ = ["BLOCKS", "Block", "PostNormBlock"]


class Block(nn.Module):
    """Attention, then feed-forward, each normalised first and added to the stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        norm = NORMS[config.norm]
        self.input_layernorm = norm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm(config.dim, config.norm_eps)
        self.mlp = feed_forward(config)

    def forward(self, x_BTD: Tensor, rotate: Rotate, attend: Attend, cache: KeyValueStore | None) -> Tensor:
        """Args: as Attention.forward. Returns: the stream after this layer."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm.derived(x_BTD), rotate, attend, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm.derived(x_BTD))


class PostNormBlock(nn.Module):
    """Attention, then feed-forward, each added to the stream, which is normalised then."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        norm = NORMS[config.norm]
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm(config.dim, config.norm_eps)
        self.mlp = feed_forward(config)
        self.post_feedforward_layernorm = norm(config.dim, config.norm_eps)

    def forward(self, x_BTD: Tensor, rotate: Rotate, attend: Attend, cache: KeyValueStore | None) -> Tensor:
        """Args and result: as Block.forward."""
        x_BTD = self.post_attention_layernorm(x_BTD + self.self_attn(x_BTD, rotate, attend, cache))
        return self.post_feedforward_layernorm(x_BTD + self.mlp(x_BTD))


BLOCKS: dict[Placement, type[Block | PostNormBlock]] = {"pre": Block, "post": PostNormBlock}
