"""The two phases of this project's own training loop that never coincide: the loss, and one layer on its way back.

    loss   chunk V (logits, which become their gradient) + a slice's log-softmax, or a gradient of the head in passing
           + copies of the head's weight and gradient + the last norm's
    block  recomputed + the stream's gradient + max(gradients in flight + a weight made dense, what an int8 product or a
           DoRA makes on the way forward), or what the last norm makes in float32

docs/findings.md 18 sets the sum beside what the allocator handed out.
"""

from math import prod

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_shapes
from puna.planning.activations import layer_activations
from puna.planning.settings import FullTraining, LoraTraining, Settings

__all__ = ["LOSS_CHUNK_LEAST_TOKENS", "LOSS_CHUNK_LOGITS", "own_block_phase", "own_loss_phase"]

LOSS_CHUNK_LOGITS = 1 << 22
"""Logits that exist at once in this project's loss (model/loss.py), as long as they are of so many tokens:"""

LOSS_CHUNK_LEAST_TOKENS = 256
"""The fewest tokens of such a chunk."""

_LOSS_SLICE_LOGITS = 1 << 20  # of a chunk, so many become their gradient at a time
_SLICE_NUMBERS, _SLICE_BYTES = 1 << 20, 16  # an NF4 weight is made dense so many at a time, at so many bytes each


def own_loss_phase(config: ModelConfig, settings: Settings) -> int:
    """Bytes of the loss beside the kept tensors and the head's own gradient."""
    tokens, vocabulary, c = settings.tokens, config.vocab_size, settings.product_bytes
    head = vocabulary * config.dim
    if settings.loss == "chunked":
        tokens = min(tokens, max(LOSS_CHUNK_LEAST_TOKENS, LOSS_CHUNK_LOGITS // vocabulary))
    part = 4 * head if isinstance(settings.method, FullTraining) and settings.loss == "chunked" else 0
    slice_logits = min(tokens * vocabulary, max(vocabulary, _LOSS_SLICE_LOGITS))
    softmax = slice_logits * (4 if c == 4 else 8)  # its log-softmax, and of 16 bits a float32 copy
    chunk = tokens * vocabulary * c + max(softmax, part)
    hidden = settings.compute_bytes * config.dim * settings.tokens
    norm = hidden * (2 if isinstance(settings.method, FullTraining) else 1) + 4 * settings.tokens
    copy = 2 * head if settings.autocast else 4 * head if settings.mapped and settings.is_wide else 0
    return chunk + copy + norm + 2 * hidden


def own_block_phase(config: ModelConfig, settings: Settings, recomputed: int) -> int:
    """Bytes of one layer going backward. Args: recomputed: that layer's tensors, with checkpointing."""
    tokens, c = settings.tokens, settings.product_bytes
    stream = 2 * settings.compute_bytes * config.dim * tokens  # the stream's gradient, and a branch's
    if recomputed:
        stream -= settings.compute_bytes * config.dim * tokens  # its input is among the kept ones
    product = layer_activations(config, settings)["product"]  # gone before the gradients of its factors are there
    in_flight = (3 * c * config.ffn_dim - product) * tokens
    largest = max(prod(shape) for shape in linear_shapes(config).values())
    return max(
        recomputed + stream + in_flight + _dense_weight(settings, largest),
        recomputed + _forward(config, settings, largest),
        _final_norm(config, settings),
    )


def _dense_weight(settings: Settings, numbers: int) -> int:
    """A weight while its transposed product is formed."""
    if (smaller := settings.compressed) is not None and not settings.rounds_anew and smaller.widened:
        return (4 if settings.compute_bytes == 4 else 6) * smaller.widened
    if settings.base == "int8":
        return (4 if settings.compute_bytes == 4 else 6) * numbers  # made in float32, then of the product's type
    if settings.base == "nf4":
        return settings.compute_bytes * numbers + 8 * numbers // 64 + _SLICE_BYTES * min(numbers, _SLICE_NUMBERS)
    if settings.base == "bfloat16" and settings.compute_bytes == 4:
        return 4 * numbers
    return 2 * numbers if settings.autocast else 0


def _forward(config: ModelConfig, settings: Settings, numbers: int) -> int:
    """What a product makes on its way forward: int8 its rounded input, or its sums in int32 and float32; DoRA the base."""
    method, made = settings.method, 0
    if settings.integer_products:
        wide = 9 if settings.compute_bytes == 2 else 5
        made = wide * config.ffn_dim * settings.tokens
    if isinstance(method, LoraTraining) and method.magnitudes:
        dense = {"float32": 0, "bfloat16": 4, "int8": 4, "nf4": 4}[settings.base] * numbers
        made = max(made, dense)
    return made


def _final_norm(config: ModelConfig, settings: Settings) -> int:
    """The last norm's way back: its input and the two gradients, and in 16 bits four float32 tensors more."""
    return (5 * 4 if settings.compute_bytes == 4 else 3 * 2 + 18) * config.dim * settings.tokens
