"""Grouped-query attention: softmax(q k^T / sqrt(E) + mask) v; query head i reads key-value head floor(i / (H / G)).

Sources: Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.arch.config import ModelConfig
from puna.model.linears.derived import Derived
from puna.model.linears.group import project_together
from puna.model.positions import apply_rope

__all__ = ["Attention", "KeyValueStore", "addend", "attention_mask"]


class KeyValueStore(Protocol):
    """Where the keys and values of earlier tokens are kept between calls."""

    @property
    def length(self) -> int:
        """Tokens stored before this call."""

    def extend(self, layer: int, k_BGTE: Tensor, v_BGTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all visible ones, k_BGSE and v_BGSE."""

    def advance(self, tokens: int) -> None:
        """Count the tokens that every layer has now stored."""


class Attention(nn.Module):
    """Self-attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.dim, config.q_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.o_proj = nn.Linear(config.q_dim, config.dim, bias=False)

    def forward(
        self,
        x_BTD: Tensor | Derived,
        cos_BTP: Tensor,
        sin_BTP: Tensor,
        mask: Tensor | None,
        cache: KeyValueStore | None,
    ) -> Tensor:
        """Args: mask: (B or 1, 1, T, S), True where visible, or added to the scores; None: causal over x alone."""
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim)) for y in project_together(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        )
        q_BHTE = apply_rope(q, cos_BTP, sin_BTP).transpose(1, 2)
        k_BGTE, v_BGTE = apply_rope(k, cos_BTP, sin_BTP).transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k_BGTE, v_BGTE = cache.extend(self.layer, k_BGTE, v_BGTE)
        is_causal = mask is None and q_BHTE.shape[2] > 1
        y_BHTE = F.scaled_dot_product_attention(
            q_BHTE, k_BGTE, v_BGTE, attn_mask=mask, is_causal=is_causal, enable_gqa=True
        )
        return project_together(y_BHTE.transpose(1, 2).flatten(2), self.o_proj)[0]


def attention_mask(
    config: ModelConfig, tokens: int, documents_BT: Tensor | None, stored: int, device: torch.device
) -> Tensor | None:
    """The visible pairs of a call, or None where causal attention over the call's own tokens says the same.

    Args:    tokens: query tokens T. stored: tokens already in the cache; the keys are those, then the T new ones.
    Returns: bool (B or 1, 1, T, S). A single new token sees everything stored: None.
    """
    if documents_BT is None and (stored == 0 or tokens == 1):
        return None
    index_S = torch.arange(stored + tokens, device=device)
    mask = config.pattern.allows(index_S[stored:, None], index_S[None, :])[None]
    if documents_BT is not None:
        mask = mask & (documents_BT[:, :, None] == documents_BT[:, None, :])
    return mask[:, None]


def addend(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to the scores: 0 where visible, else -inf, in the type of the queries.

    The kernels make this of a bool mask in every layer anew, and keep each copy for the way back; one serves them all.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
