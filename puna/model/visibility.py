"""Who sees whom in one call of the model: a way to attend for each layer, made once and shared by layers that see alike.

Over a call's own tokens a local pattern is computed block by block (banded_attention.py), causal attention by the kernels'
own rule; packed documents and keys from a cache need a mask.
"""

import math
from functools import partial

import torch
from torch import Tensor

from puna.arch.attention_pattern import Causal, LayerPattern
from puna.arch.bands import sees_all
from puna.arch.config import ModelConfig
from puna.model.attention import Attend, KeyValueStore, addend, attend_causally, attend_where
from puna.model.banded_attention import HeadParts, banded_attention

__all__ = ["attention_mask", "ways_to_attend"]


def ways_to_attend(
    config: ModelConfig,
    tokens: int,
    documents_BT: Tensor | None,
    store: KeyValueStore | None,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Attend]:
    """Of every layer.

    Args: tokens: query tokens T. documents_BT: tokens see only tokens of their own document (not together with a store).
          dtype: that of the queries.
    """
    made: dict[LayerPattern, Attend] = {}
    layers = [config.pattern.of_layer(layer) for layer in range(config.n_layers)]
    for layer, pattern in enumerate(layers):
        if pattern in made:
            continue
        if store is None or store.length == 0:
            made[pattern] = _over_own_tokens(pattern, tokens, documents_BT, device, dtype)
        elif tokens == 1 and pattern.sees_whole_horizon:
            made[pattern] = attend_causally
        else:
            queries_T, keys_S = torch.arange(store.length, store.length + tokens), store.positions(layer, tokens)
            mask = attention_mask(pattern, config.n_heads, queries_T.to(device), keys_S.to(device))
            made[pattern] = partial(attend_where, mask=addend(mask, dtype))
    ways = [made[pattern] for pattern in layers]
    if config.score_scale == "1/sqrt":
        return ways
    again = config.score_factor * math.sqrt(config.head_dim)  # every way divides scores by sqrt(E)
    return [partial(_rescaled, way, again) for way in ways]


def attention_mask(
    pattern: LayerPattern, heads: int, queries_T: Tensor, keys_S: Tensor, documents_BT: Tensor | None = None
) -> Tensor:
    """The visible pairs of a call, dense: bool (B or 1, heads or 1, T, S).

    Args: queries_T, keys_S: positions. documents_BT: of both, where the keys are the queries' own tokens.
    """
    seen = [part.allows(queries_T[:, None], keys_S[None, :]) for part in pattern.parts]
    mask = torch.stack(seen).repeat_interleave(heads // len(seen) if len(seen) > 1 else 1, dim=0)[None]
    if documents_BT is not None:
        mask = mask & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
    return mask


def _rescaled(
    attend: Attend, factor: float, q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, sink_H: Tensor | None
) -> Tensor:
    return attend(q_BHTE * factor, k_BGSE, v_BGSE, sink_H)


def _over_own_tokens(
    pattern: LayerPattern, tokens: int, documents_BT: Tensor | None, device: torch.device, dtype: torch.dtype
) -> Attend:
    if not sees_all(pattern, tokens):
        ways = [banded_attention(part, tokens, documents_BT, device, dtype) for part in pattern.parts]
        return ways[0] if len(ways) == 1 else HeadParts(ways)
    if documents_BT is None:
        return attend_causally
    index_T = torch.arange(tokens, device=device)
    mask = attention_mask(Causal(), 1, index_T, index_T, documents_BT)
    return partial(attend_where, mask=addend(mask, dtype))
