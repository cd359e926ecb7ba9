"""Llama: embedding, N blocks, a final norm, a linear head. The only forward pass of this project.

    h = embed(ids);  h = block_n(h) for each layer;  logits = head(norm(h))

Parameter names are Hugging Face's without the leading `model.`, so weights and adapters map one to one.
Source: Touvron et al. 2023, arXiv:2302.13971; Dubey et al. 2024, arXiv:2407.21783.
"""

import torch
from torch import Tensor, nn

from puna.arch.config import ModelConfig
from puna.model.attention import KeyValueStore
from puna.model.block import BLOCKS
from puna.model.linears.kind import product_type
from puna.model.norms import NORMS, NoNorm
from puna.model.positions import POSITIONS
from puna.model.visibility import ways_to_attend

__all__ = ["Llama"]


class Llama(nn.Module):
    """A decoder-only language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.position = POSITIONS[config.position](config)
        self.layers = nn.ModuleList(BLOCKS[config.norm_placement](config, layer) for layer in range(config.n_layers))
        is_normed_already = config.norm_placement == "post"
        self.norm = NORMS["none" if is_normed_already else config.norm](config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=config.head_bias)
        if config.tied_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        """The type of the stream: a table may be stored narrower."""
        return self._reference.dtype

    @property
    def device(self) -> torch.device:
        """Where the stream is."""
        return self._reference.device

    @property
    def _reference(self) -> Tensor:
        return self.embed_tokens.weight if isinstance(self.norm, NoNorm) else self.norm.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        """logits_BTV in float32 or wider, for short inputs; training and evaluation use `hidden` and model/loss.py."""
        logits_BTV = self.lm_head(self.hidden(ids_BT))
        return logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        documents_BT: Tensor | None = None,
        cache: KeyValueStore | None = None,
    ) -> Tensor:
        """What the head reads: hidden_BTD after the final norm.

        Args: positions_BT: absolute positions; None: those that follow the cache.
              documents_BT: tokens attend within their own document only (not together with a cache).
              cache: earlier keys and values; extended by these tokens.
        """
        tokens, stored = ids_BT.shape[1], 0 if cache is None else cache.length
        if positions_BT is None:
            positions_BT = torch.arange(stored, stored + tokens, device=ids_BT.device)[None]
        x_BTD = self.position.add(self.embed_tokens(ids_BT).to(self.dtype), positions_BT)
        rotate = self.position.rotation(positions_BT)
        ways = ways_to_attend(self.config, tokens, documents_BT, cache, ids_BT.device, product_type(x_BTD))
        for block, attend in zip(self.layers, ways, strict=True):
            x_BTD = block(x_BTD, rotate, attend, cache)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x_BTD)
