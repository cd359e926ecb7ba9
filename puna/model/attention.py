"""Grouped-query attention: softmax(q k^T / sqrt(E) + mask) v; query head i reads key-value head floor(i / (H / G)).

Who sees whom comes as a function, `Attend`, made once for a call (model/visibility.py): this file knows no pattern.
Sources: Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.arch.config import ModelConfig
from puna.model.linears.derived import Derived
from puna.model.linears.group import project_together
from puna.model.positions import Rotate

__all__ = ["Attend", "Attention", "KeyValueStore", "Sinks", "addend", "attend_causally", "attend_where"]


class Attend(Protocol):
    """How a layer's queries read its keys, in one call of the model."""

    def __call__(self, q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, sink_H: Tensor | None) -> Tensor:
        """Returns: y_BHTE. sink_H: a logit for each head beside its scores, whose value is zero."""


class KeyValueStore(Protocol):
    """Where the keys and values of earlier tokens are kept between calls."""

    @property
    def length(self) -> int:
        """Tokens that came before this call, those no longer kept included."""

    def positions(self, layer: int, tokens: int) -> Tensor:
        """positions_S of the keys that `extend` will return for so many new tokens, in its order."""

    def extend(self, layer: int, k_BGTE: Tensor, v_BGTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return what is kept of the earlier ones and the new, k_BGSE and v_BGSE."""

    def advance(self, tokens: int) -> None:
        """Count the tokens that every layer has now stored."""


class Attention(nn.Module):
    """Self-attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.sinks = Sinks(config.n_heads) if config.has_sinks(layer) else None
        self.q_proj = nn.Linear(config.dim, config.q_dim, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.dim, config.kv_dim, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.dim, config.kv_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.q_dim, config.dim, bias=config.attention_bias)

    def forward(self, x_BTD: Tensor | Derived, rotate: Rotate, attend: Attend, cache: KeyValueStore | None) -> Tensor:
        """Args: rotate: what positions do to queries and keys; attend: who sees whom in this call. cache: extended by these
        tokens. Returns: x's shape.
        """
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim)) for y in project_together(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        )
        q_BHTE, k_BGTE, v_BGTE = rotate(q).transpose(1, 2), rotate(k).transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k_BGTE, v_BGTE = cache.extend(self.layer, k_BGTE, v_BGTE)
        y_BHTE = attend(q_BHTE, k_BGTE, v_BGTE, None if self.sinks is None else self.sinks.weight)
        return project_together(y_BHTE.transpose(1, 2).flatten(2), self.o_proj)[0]


class Sinks(nn.Module):
    """A learned logit for each head, (H), where its attention may go instead of to a token."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads))


def attend_causally(q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, sink_H: Tensor | None = None) -> Tensor:
    """Attend: every query sees itself and all before it; a single one everything."""
    return attend_where(q_BHTE, k_BGSE, v_BGSE, sink_H, mask=None)


def attend_where(
    q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, sink_H: Tensor | None, *, mask: Tensor | None
) -> Tensor:
    """Attend by a mask.

    Args:   mask: (B or 1, H or 1, T, S), True where visible, or added to the scores; None: as attend_causally.
    Source: of the sinks Xiao et al. 2023, arXiv:2309.17453, "zero sink" with a learned logit: a key of zeros.
    """
    is_causal = mask is None and q_BHTE.shape[2] > 1
    if sink_H is not None:
        mask, is_causal = _with_sink(mask, is_causal, q_BHTE, k_BGSE, sink_H), False
        k_BGSE, v_BGSE = (F.pad(each, (0, 0, 0, 1)) for each in (k_BGSE, v_BGSE))
    return F.scaled_dot_product_attention(q_BHTE, k_BGSE, v_BGSE, attn_mask=mask, is_causal=is_causal, enable_gqa=True)


def _with_sink(mask: Tensor | None, is_causal: bool, q_BHTE: Tensor, k_BGSE: Tensor, sink_H: Tensor) -> Tensor:
    """What is added to the scores: the mask, and in a last column each head's logit."""
    B, H, T, _ = q_BHTE.shape
    shape, sink_H = (T, k_BGSE.shape[2]), sink_H.to(q_BHTE.dtype)
    if mask is None:
        visible = torch.ones(shape, dtype=torch.bool, device=q_BHTE.device)
        mask = (visible.tril() if is_causal else visible)[None, None]
    if mask.dtype == torch.bool:
        mask = addend(mask, q_BHTE.dtype)
    return torch.cat((mask.expand(B, H, *shape), sink_H[None, :, None, None].expand(B, H, T, 1)), dim=-1)


def addend(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to the scores: 0 where visible, else -inf, in the type of the queries.

    The kernels make this of a bool mask in every layer anew, and keep each copy for the way back; one serves them all.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
