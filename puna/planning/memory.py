"""Bytes at the peak, term by term.

    M = weights + adapters + gradients + optimizer + kept + max(loss phase, block phase) + runtime

`kept` lives from forward to backward: every layer's tensors, or with checkpointing each layer's input alone. The loss
phase holds logits, the block phase one layer's recomputed tensors and the gradients in flight; they never coincide, so
only the larger counts. In the answer `logits` is the loss phase and `activations` is kept + what the block phase needs
beyond it, so that the terms add up to the peak.

Two implementations are described. With 16-bit activations: fused kernels as in math.md section 4, whose table this
reproduces. In float32, or where it is asked for: this project's own loop, counted tensor by tensor (activations.py,
own_loop.py). There the gradients of full training appear as the kept tensors go, layer by layer, so that a step of one
batch holds the head's gradient beside everything kept, or every gradient beside one layer; an adapter's come alike.
Source: docs/math.md section 4.
"""

from dataclasses import dataclass, field
from math import prod

from puna.arch.config import ModelConfig
from puna.arch.modules import EMBEDDING, HEAD, LINEARS, linear_shapes, linear_size
from puna.arch.rounding import NF4_MAXIMA, NF4_NUMBERS
from puna.planning.activations import layer_bytes
from puna.planning.counting import (
    kv_cache_bytes,
    linear_parameters,
    lora_parameters,
    norm_parameters,
    parameter_count,
)
from puna.planning.local_attention import mask_bytes
from puna.planning.own_loop import own_block_phase, own_loss_phase
from puna.planning.settings import ADAM_FLOAT32, ADAM_MIXED, Base, Compressed, Inference, LoraTraining, Settings

__all__ = [
    "LOSS_CHUNK_TOKENS",
    "PROCESS_BYTES",
    "RUNTIME_BYTES",
    "STREAM_BUFFERS",
    "Memory",
    "bus_bytes_per_step",
    "nf4_bytes",
    "peak_memory",
    "streamed_layer_bytes",
    "weight_bytes",
]

RUNTIME_BYTES = 2**29
"""Allocator slack and library workspaces: math.md's upper figure."""

PROCESS_BYTES = 100 * 2**20
"""What a CPU process grows by when torch first works: code pages, workspaces; measured 115 to 130 MB on small models."""

LOSS_CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once in a fused 16-bit loss."""

STREAM_BUFFERS = 2
"""Streamed layers on the device at once: one multiplies while the next arrives."""

_LOGIT_BYTES_16 = 2 + 4 + 4  # the logit, its float32 copy, the copy's gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at the moment of the peak, and their sum."""

    weights: int
    adapters: int = 0
    gradients: int = 0
    optimizer: int = 0
    kv_cache: int = 0
    activations: int
    logits: int
    runtime: int
    total: int = field(init=False)

    def __post_init__(self) -> None:
        states = self.weights + self.adapters + self.gradients + self.optimizer + self.kv_cache
        object.__setattr__(self, "total", states + self.activations + self.logits + self.runtime)


def peak_memory(config: ModelConfig, settings: Settings, runtime_bytes: int = RUNTIME_BYTES) -> Memory:
    """The peak of one step (training) or of reading in and continuing the batch (inference)."""
    if isinstance(settings.method, Inference):
        return _inference_memory(config, settings, runtime_bytes)
    if isinstance(settings.method, LoraTraining):
        states = _adapter_states(config, settings.method)
    else:
        states = _full_states(config, settings)
    kept, loss, block = _kept(config, settings), _loss_phase(config, settings), _block_phase(config, settings)
    passing = {"activations": kept + max(0, block - loss), "logits": loss}
    if settings.is_own and not settings.accumulates:
        first, table = _first_and_last_gradient(config, settings, states["gradients"])
        last = block + (0 if settings.checkpointing else _largest_layer(config, settings)) + _shared(config, settings)
        ending = max(0, last - table)
        if first + sum(passing.values()) > states["gradients"] + ending:
            states["gradients"] = first
        else:
            passing = {"activations": ending, "logits": 0}
    return Memory(weights=_device_weights(config, settings), **states, **passing, runtime=runtime_bytes)


def _first_and_last_gradient(config: ModelConfig, settings: Settings, gradients: int) -> tuple[int, int]:
    """Bytes of all gradients that the loss itself makes, and of those that appear last of all, once the layers are through:
    the two tables', where they are trained.
    """
    if isinstance(method := settings.method, LoraTraining):
        outer = [[name] if name in method.targets else [] for name in (HEAD, EMBEDDING)]
        head, embedding = (lora_parameters(config, method.rank, names, method.ranks) for names in outer)
        return method.adam.gradient * head, method.adam.gradient * embedding
    each = gradients // _trained(config, settings)
    if (smaller := settings.compressed) is not None:
        first, last = (smaller.table, 0) if config.tied_embeddings else (smaller.head, smaller.table)
        return each * first, each * last
    table = each * config.vocab_size * config.dim
    return table, 0 if config.tied_embeddings else table


def _full_states(config: ModelConfig, settings: Settings) -> dict[str, int]:
    """All gradients and moments of full training."""
    adam, trained = ADAM_FLOAT32 if settings.base == "float32" else ADAM_MIXED, _trained(config, settings)
    return {"gradients": trained * adam.gradient, "optimizer": trained * adam.states}


def _trained(config: ModelConfig, settings: Settings) -> int:
    """Numbers of full training."""
    if (smaller := settings.compressed) is None:
        return parameter_count(config)
    return smaller.linears + smaller.table + smaller.head + norm_parameters(config)


def _adapter_states(config: ModelConfig, method: LoraTraining) -> dict[str, int]:
    """An adapter with what stands frozen beside it, its gradients and its moments."""
    factors = lora_parameters(config, method.rank, method.targets, method.ranks)
    trained = lora_parameters(config, method.rank, method.targets, method.ranks, magnitudes=method.magnitudes)
    frozen = (factors if method.starts else 0) + trained - factors  # what began so; the base's row lengths
    return {
        "adapters": trained * method.adam.weight + 4 * frozen,
        "gradients": trained * method.adam.gradient,
        "optimizer": trained * method.adam.states,
    }


def _device_weights(config: ModelConfig, settings: Settings) -> int:
    """The weights without what is streamed: of the layers in host memory two at a time are on the device.

    Of a base in a mapped file the norms' gains alone.
    """
    if settings.mapped:
        return (2 * config.n_layers + 1) * config.dim * settings.compute_bytes
    layers = min(settings.streamed_layers, config.n_layers)
    weights = weight_bytes(config, settings.base, is_wide=settings.is_wide, compressed=settings.compressed)
    if layers > STREAM_BUFFERS:
        weights -= (layers - STREAM_BUFFERS) * streamed_layer_bytes(config, settings)
    if settings.streamed_embedding and not config.tied_embeddings:
        weights -= config.vocab_size * config.dim * settings.compute_bytes
    return weights


def bus_bytes_per_step(config: ModelConfig, settings: Settings) -> int:
    """What streaming copies to the device in a step: each streamed layer forward and again backward, but for the two that
    are there already at each turn.
    """
    layers = min(settings.streamed_layers, config.n_layers)
    return 2 * max(0, layers - STREAM_BUFFERS) * streamed_layer_bytes(config, settings)


def streamed_layer_bytes(config: ModelConfig, settings: Settings) -> int:
    """What one streamed layer has in host memory, of a compressed model the mean one: its frozen Linears. Norms and adapters
    stay on the device.
    """
    return -(-_linears_bytes(config, settings.base, settings.compressed) // config.n_layers)


def weight_bytes(
    config: ModelConfig, base: Base, *, is_wide: bool = False, compressed: Compressed | None = None
) -> int:
    """Stored weights. A quantised base keeps embedding, head and norms in 16 bits, or wide; int8 has a float32 scale a row."""
    outside = parameter_count(config) - linear_parameters(config)
    if compressed is not None:
        outside = compressed.table + compressed.head + norm_parameters(config)
    return _linears_bytes(config, base, compressed) + outside * (4 if base == "float32" or is_wide else 2)


def _linears_bytes(config: ModelConfig, base: Base, compressed: Compressed | None) -> int:
    """All blocks' Linears as they are stored."""
    if compressed is None or base in ("int8", "nf4"):
        return config.n_layers * _linear_bytes(config, base)
    return compressed.linears * (4 if base == "float32" else 2) + compressed.rounded_bytes


def _linear_bytes(config: ModelConfig, base: Base) -> int:
    """One layer's stored Linears."""
    shapes = linear_shapes(config).values()
    if base == "int8":
        return sum(prod(shape) + 4 * shape[0] for shape in shapes)
    if base == "nf4":
        return sum(nf4_bytes(prod(shape)) for shape in shapes)
    return (4 if base == "float32" else 2) * sum(linear_size(config, name) for name in LINEARS)


def nf4_bytes(numbers: int, *, double_quantised: bool = True) -> int:
    """Two codes a byte, and the maximum of every 64 numbers: float32, or 8 bits with a float32 scale for 256 maxima and
    one float32 mean of all.

    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3; 0.5625 and 0.515869 bytes a number.
    """
    blocks = -(-numbers // NF4_NUMBERS)
    maxima = blocks + 4 * -(-blocks // NF4_MAXIMA) + 4 if double_quantised else 4 * blocks
    return -(-numbers // 2) + maxima


def _kept(config: ModelConfig, settings: Settings) -> int:
    """Everything held from forward to backward."""
    block_input = settings.compute_bytes * config.dim * settings.tokens
    if settings.checkpointing:
        return config.n_layers * block_input + _shared(config, settings)
    layers = (count * layer_bytes(config, settings, pattern) for pattern, count in config.layer_patterns.items())
    return sum(layers) + _shared(config, settings)


def _largest_layer(config: ModelConfig, settings: Settings) -> int:
    return max(layer_bytes(config, settings, pattern) for pattern in config.layer_patterns)


def _shared(config: ModelConfig, settings: Settings) -> int:
    """What all layers read: masks, of a packed batch's documents above all; in our own loop also the rotation angles."""
    if not settings.is_own:
        return settings.product_bytes * settings.tokens * settings.seq if settings.packed else 0
    return mask_bytes(config, settings) + 4 * (settings.tokens if settings.packed else settings.seq) * config.head_dim


def _loss_phase(config: ModelConfig, settings: Settings) -> int:
    """Logits that exist at once, with their copies and gradients."""
    if settings.is_own:
        return own_loss_phase(config, settings)
    tokens = min(settings.tokens, LOSS_CHUNK_TOKENS) if settings.loss == "chunked" else settings.tokens
    return tokens * config.vocab_size * _LOGIT_BYTES_16


def _block_phase(config: ModelConfig, settings: Settings) -> int:
    """One layer going backward: recomputed tensors, the gradients of gate and up, a dequantised weight."""
    recomputed = _largest_layer(config, settings) if settings.checkpointing else 0
    if settings.is_own:
        return own_block_phase(config, settings, recomputed)
    in_flight = 2 * settings.compute_bytes * config.ffn_dim * settings.tokens
    return recomputed + in_flight + _dequantised(config, settings)


def _inference_memory(config: ModelConfig, settings: Settings, runtime_bytes: int) -> Memory:
    """Logits of each sequence's last position only; reading in holds one layer's stream, norm, gate, up and product."""
    c = settings.compute_bytes
    logits = settings.batch * config.vocab_size * (4 if c == 4 else 2 + 4)
    block = settings.tokens * c * (2 * config.dim + 4 * config.ffn_dim) + _dequantised(config, settings)
    return Memory(
        weights=weight_bytes(config, settings.base, is_wide=settings.is_wide, compressed=settings.compressed),
        kv_cache=settings.batch * kv_cache_bytes(config, settings.seq, c),
        activations=max(0, block - logits),
        logits=logits,
        runtime=runtime_bytes,
    )


def _dequantised(config: ModelConfig, settings: Settings) -> int:
    """The largest Linear's weight in the compute type, while it multiplies."""
    if settings.compressed is not None and not settings.rounds_anew:
        return settings.compute_bytes * settings.compressed.widened
    if settings.base == "float32" or (settings.base == "bfloat16" and not settings.is_wide):
        return 0
    return settings.compute_bytes * max(prod(shape) for shape in linear_shapes(config).values())
