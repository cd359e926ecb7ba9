"""Bytes at the peak, term by term.

    M = weights + adapters + gradients + optimizer + kept + max(loss phase, block phase) + runtime

`kept` lives from forward to backward: every layer's tensors, or with checkpointing each layer's input alone. The loss
phase holds logits, the block phase one layer's recomputed tensors and the gradients in flight; they never coincide, so
only the larger counts. In the answer `logits` is the loss phase and `activations` is kept + what the block phase needs
beyond it, so that the terms add up to the peak.

Two implementations are described. With 16-bit activations: fused kernels as in math.md section 4, whose table this
reproduces. In float32: this project's own loop on a processor, whose kept tensors a test compares one by one.
Source: docs/math.md section 4.
"""

from dataclasses import dataclass, field
from math import prod

from puna.arch.config import ModelConfig
from puna.arch.modules import LINEARS, linear_shapes, shares_input
from puna.planning.counting import kv_cache_bytes_per_token, linear_parameters, lora_parameters, parameter_count
from puna.planning.settings import ADAM_FLOAT32, ADAM_MIXED, Base, FullTraining, Inference, LoraTraining, Settings

__all__ = [
    "LOSS_CHUNK_LEAST_TOKENS",
    "LOSS_CHUNK_LOGITS",
    "LOSS_CHUNK_TOKENS",
    "PROCESS_BYTES",
    "RUNTIME_BYTES",
    "Memory",
    "layer_activations",
    "nf4_bytes",
    "peak_memory",
    "weight_bytes",
]

RUNTIME_BYTES = 2**29
"""Allocator slack and library workspaces: math.md's upper figure."""

PROCESS_BYTES = 100 * 2**20
"""What a CPU process grows by when torch first works: code pages, workspaces; measured 115 to 130 MB on small models."""

LOSS_CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once in a fused 16-bit loss."""

LOSS_CHUNK_LOGITS = 1 << 22
"""Logits that exist at once in this project's float32 loss (model/loss.py), as long as they are of so many tokens:"""

LOSS_CHUNK_LEAST_TOKENS = 256
"""The fewest tokens of such a chunk."""

_LOGIT_BYTES_16 = 2 + 4 + 4  # the logit, its float32 copy, the copy's gradient
_LOGIT_BYTES_32 = 4 + 4  # the logit, and its log-softmax, which becomes the gradient
_NF4_BLOCK, _NF4_SCALES = 64, 256  # numbers that share an 8-bit maximum; maxima that share a float32 scale


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
    kept, loss, block = _kept(config, settings), _loss_phase(config, settings), _block_phase(config, settings)
    rest = {"activations": kept + max(0, block - loss), "logits": loss, "runtime": runtime_bytes}
    weights = weight_bytes(config, settings.base)
    if isinstance(settings.method, LoraTraining):
        adam = settings.method.adam
        method = settings.method
        factors = lora_parameters(config, method.rank, method.targets, method.ranks)
        trained = lora_parameters(config, method.rank, method.targets, method.ranks, magnitudes=method.magnitudes)
        frozen = (factors if method.starts else 0) + trained - factors  # what began so; the base's row lengths
        adapters = trained * adam.weight + 4 * frozen
    else:
        adam = ADAM_FLOAT32 if settings.base == "float32" else ADAM_MIXED
        trained, adapters = parameter_count(config), 0
    states = {"gradients": trained * adam.gradient, "optimizer": trained * adam.states}
    return Memory(weights=weights, adapters=adapters, **states, **rest)


def weight_bytes(config: ModelConfig, base: Base) -> int:
    """Stored weights. A quantised base keeps embedding, head and norms in 16 bits; int8 has a float32 scale a row."""
    if base in ("float32", "bfloat16"):
        return parameter_count(config) * (4 if base == "float32" else 2)
    rest = 2 * (parameter_count(config) - linear_parameters(config))
    shapes = linear_shapes(config).values()
    if base == "int8":
        return rest + config.n_layers * sum(prod(shape) + 4 * shape[0] for shape in shapes)
    return rest + config.n_layers * sum(nf4_bytes(prod(shape)) for shape in shapes)


def nf4_bytes(numbers: int, *, double_quantised: bool = True) -> int:
    """Two codes a byte, and the maximum of every 64 numbers: float32, or 8 bits with a float32 scale for 256 maxima and
    one float32 mean of all.

    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3; 0.5625 and 0.515869 bytes a number.
    """
    blocks = -(-numbers // _NF4_BLOCK)
    maxima = blocks + 4 * -(-blocks // _NF4_SCALES) + 4 if double_quantised else 4 * blocks
    return -(-numbers // 2) + maxima


def layer_activations(config: ModelConfig, settings: Settings) -> dict[str, int]:
    """Bytes per token that one layer keeps from forward to backward, by tensor (math.md's `a` is their sum).

    A Linear keeps its input only if it is trained or has an adapter; a frozen one needs its weight alone.
    """
    c, d, f = settings.compute_bytes, config.dim, config.ffn_dim
    q, kv = config.q_dim, config.kv_dim
    keeps = _keep_inputs(settings)
    parts = {
        "norm_inputs": c * 2 * d,
        "attention_input": c * d * any(name in keeps for name in shares_input("q_proj")),
        "queries": c * q,
        "keys": c * kv,
        "values": c * kv,
        "log_sum_exp": 4 * config.n_heads,
        "attention_output": c * q,
        "feed_forward_input": c * d * any(name in keeps for name in shares_input("gate_proj")),
        "gate": c * f,
        "up": c * f,
        "activated_gate": c * f,
        "product": c * f * ("down_proj" in keeps),
    }
    if isinstance(settings.method, LoraTraining):
        targets = [name for name in settings.method.targets if name in LINEARS]
        parts["lora_middle"] = c * sum(map(settings.method.rank_of, targets))
        if settings.method.magnitudes:
            shapes = linear_shapes(config)
            parts["dora_outputs"] = c * sum(shapes[name][0] for name in targets)
    return parts | _unfused_activations(config, settings) | _own_activations(settings)


def _unfused_activations(config: ModelConfig, settings: Settings) -> dict[str, int]:
    """Surcharges of kernels that are not fused: float32 copies of norm inputs, k and v repeated, the score matrix."""
    c, surcharges = settings.compute_bytes, {}
    if "norms" in settings.unfused:
        surcharges["norm_inputs_float32"] = 2 * (4 - c) * config.dim
    if "heads" in settings.unfused:
        surcharges["repeated_keys_values"] = 2 * c * (config.q_dim - config.kv_dim)
    if "softmax" in settings.unfused:
        surcharges["scores"] = config.n_heads * settings.seq * (c + 4)
    return surcharges


def _own_activations(settings: Settings) -> dict[str, int]:
    """What this project's float32 layers keep otherwise: 1 / rms of two norms; silu(gate) is formed again."""
    return {"inverse_rms": 2 * 4, "activated_gate": 0} if settings.compute_bytes == 4 else {}


def _layer_bytes(config: ModelConfig, settings: Settings) -> int:
    """One layer from forward to backward."""
    return settings.tokens * sum(layer_activations(config, settings).values())


def _kept(config: ModelConfig, settings: Settings) -> int:
    """Everything held from forward to backward; in float32 also the rotation angles and the final norm's tensors."""
    block_input = settings.compute_bytes * config.dim * settings.tokens
    layers = config.n_layers * (block_input if settings.checkpointing else _layer_bytes(config, settings))
    mask = settings.compute_bytes * settings.tokens * settings.seq if settings.packed else 0
    if settings.compute_bytes < 4:
        return layers + mask
    angles = 4 * (settings.tokens if settings.packed else settings.seq) * config.head_dim
    final_norm = block_input * (2 if isinstance(settings.method, FullTraining) else 1) + 4 * settings.tokens
    hidden_and_gradient = 2 * block_input
    return layers + mask + angles + final_norm + hidden_and_gradient


def _loss_phase(config: ModelConfig, settings: Settings) -> int:
    """Logits that exist at once, with their copies and gradients."""
    own, tokens = settings.compute_bytes == 4, settings.tokens
    if settings.loss == "chunked":
        chunk = max(LOSS_CHUNK_LEAST_TOKENS, LOSS_CHUNK_LOGITS // config.vocab_size) if own else LOSS_CHUNK_TOKENS
        tokens = min(tokens, chunk)
    return tokens * config.vocab_size * (_LOGIT_BYTES_32 if own else _LOGIT_BYTES_16)


def _block_phase(config: ModelConfig, settings: Settings) -> int:
    """One layer going backward: recomputed tensors, the gradients of gate and up, a dequantised weight."""
    recomputed = _layer_bytes(config, settings) if settings.checkpointing else 0
    in_flight = 2 * settings.compute_bytes * config.ffn_dim * settings.tokens
    return recomputed + in_flight + _dequantised(config, settings)


def _inference_memory(config: ModelConfig, settings: Settings, runtime_bytes: int) -> Memory:
    """Logits of each sequence's last position only; reading in holds one layer's stream, norm, gate, up and product."""
    c = settings.compute_bytes
    logits = settings.batch * config.vocab_size * (4 if c == 4 else 2 + 4)
    block = settings.tokens * c * (2 * config.dim + 4 * config.ffn_dim) + _dequantised(config, settings)
    return Memory(
        weights=weight_bytes(config, settings.base),
        kv_cache=settings.tokens * kv_cache_bytes_per_token(config, c),
        activations=max(0, block - logits),
        logits=logits,
        runtime=runtime_bytes,
    )


def _dequantised(config: ModelConfig, settings: Settings) -> int:
    """The largest Linear's weight in the compute type, while it multiplies."""
    if settings.base in ("float32", "bfloat16"):
        return 0
    return settings.compute_bytes * max(prod(shape) for shape in linear_shapes(config).values())


def _keep_inputs(settings: Settings) -> tuple[str, ...]:
    method = settings.method
    return method.targets if isinstance(method, LoraTraining) else ("q_proj", "gate_proj", "down_proj")
