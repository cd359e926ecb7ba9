"""What local attention keeps beside causal attention, in this project's own layers (model/banded_attention.py).

Masks, once for all layers. Of heads in several parts the outputs, joined anew, and repeated keys and values. With a learned
sink torch's plain kernel computes: it keeps scaled queries and keys, the weights and the values of each head.
"""

from collections.abc import Iterator

from puna.arch.attention_pattern import LayerPattern
from puna.arch.bands import Bands, Piece, cut_bands, sees_all
from puna.arch.config import ModelConfig
from puna.planning.settings import Settings

__all__ = ["attention_bytes", "mask_bytes"]


def attention_bytes(config: ModelConfig, settings: Settings, pattern: LayerPattern) -> int:
    """What such a layer's attention keeps of the batch beyond what causal attention would."""
    c, seq = settings.product_bytes, settings.seq
    if pattern.has_sink:
        return settings.batch * _plain_kernel_bytes(config, pattern, seq, c)
    if sees_all(pattern, seq):
        return 0
    if len(pattern.parts) == 1:
        return 0
    is_repeated = config.n_kv_heads % len(pattern.parts) > 0
    return settings.tokens * c * (config.q_dim + is_repeated * 2 * (config.q_dim - config.kv_dim))


def mask_bytes(config: ModelConfig, settings: Settings) -> int:
    """The masks of a call, each once for all layers that see alike."""
    return settings.product_bytes * sum(_mask_numbers(pattern, settings) for pattern in config.layer_patterns)


def _mask_numbers(pattern: LayerPattern, settings: Settings) -> int:
    if sees_all(pattern, settings.seq):
        return settings.tokens * settings.seq if settings.packed else 0
    numbers = 0
    for bands in _bands(pattern, settings.seq):
        sizes = [piece.queries * piece.keys for piece in (bands.first, bands.body, bands.last)]
        if settings.packed:
            numbers += settings.batch * (sizes[0] + bands.blocks * sizes[1] + sizes[2])
        elif bands.back:
            numbers += min(1, bands.blocks) * sizes[1] + sizes[2]
    return numbers


def _bands(pattern: LayerPattern, tokens: int) -> Iterator[Bands]:
    return (cut_bands(part, tokens) for part in pattern.parts)


def _plain_kernel_bytes(config: ModelConfig, pattern: LayerPattern, tokens: int, c: int) -> int:
    """Of a row whose heads have a learned sink: a key of zeros more in every piece. Queries, keys, values and log-sum-exps, which
    the fused kernel would keep, are not kept beside them.
    """
    pieces = [Piece(blocks=1, queries=tokens, keys=tokens)]
    if not sees_all(pattern, tokens):
        pieces = [piece for bands in _bands(pattern, tokens) for piece in (bands.first, bands.body, bands.last)]
    numbers = -tokens * (config.q_dim + 2 * config.kv_dim)
    for piece in pieces:
        each = piece.queries * config.head_dim + (piece.keys + 1) * (2 * config.head_dim + piece.queries)
        numbers += piece.blocks * config.n_heads * each
    return c * numbers - 4 * config.n_heads * tokens
