"""A model with fewer key-value heads, layer by layer, from what its attention reads in calibration text.

What comes out is a plain Llama: its key-value cache is smaller by the ratio of the heads, and nothing else is. Source of the
pooling: compression/heads.py.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from puna.arch.modules import linear_path
from puna.compression.heads import HeadLoss, Heads, Pooling, pool_heads
from puna.compression.statistics import sum_inputs
from puna.model.linears.kind import dense_linear, own_weight
from puna.model.llama import Llama
from puna.model.surgery import get_linear

__all__ = ["attention_grams", "pool_key_value_heads"]

_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")


def attention_grams(model: Llama, windows: Sequence[Tensor]) -> list[Tensor]:
    """The mean of x x^T of what each layer's attention reads, float64 (D, D). Args: windows: ids_BT.

    Errors: BadData: no window at all, or inputs that are not finite.
    """
    paths = [linear_path(layer, _NAMES[0]) for layer in range(model.config.n_layers)]
    return [total.gram_ii / total.tokens for total in sum_inputs(model, windows, paths).values()]


@torch.no_grad()
def pool_key_value_heads(
    model: Llama, kv_heads: int, grams: Sequence[Tensor] | None = None, pooling: Pooling = "joint"
) -> list[HeadLoss | None]:
    """Give every layer `kv_heads` key-value heads, in place; its four Linears are dense then, in the type of the norms.

    Args:    grams: what `attention_grams` found; None: every direction counts alike, and `mean` asks for none.
    Returns: of each layer what `joint` left out, in units of its Gram. Errors: UsageError, before anything has changed.
    """
    config, dtype = model.config, model.dtype
    losses = []
    for layer in range(config.n_layers):
        covariance_DD = torch.eye(config.dim).to(model.device, model.dtype) if grams is None else grams[layer]
        pooled, loss = pool_heads(_heads(model, layer), kv_heads, covariance_DD, pooling)
        o_DHE = pooled.o_HDE.transpose(0, 1)
        weights = pooled.q_HED.flatten(0, 1), pooled.k_PED.flatten(0, 1), pooled.v_PED.flatten(0, 1), o_DHE.flatten(1)
        attention = model.layers[layer].self_attn
        for name, weight in zip(_NAMES, weights, strict=True):
            setattr(attention, name, dense_linear(weight.to(dtype).contiguous()))
        losses.append(loss)
    model.config = replace(config, n_kv_heads=kv_heads)
    return losses


def _heads(model: Llama, layer: int) -> Heads:
    """One layer's weights by heads, float64."""
    q, k, v, o = (own_weight(get_linear(model, linear_path(layer, name))).double() for name in _NAMES)
    size = model.config.head_dim
    return Heads(
        q_HED=q.unflatten(0, (-1, size)), k_PED=k.unflatten(0, (-1, size)), v_PED=v.unflatten(0, (-1, size)),
        o_HDE=o.unflatten(1, (-1, size)).transpose(0, 1),
    )  # fmt: skip
