"""What one layer keeps from forward to backward, tensor by tensor.

Two implementations are described: fused kernels in 16 bits, as in docs/math.md section 4, and this project's own layers,
whose kept tensors a test compares one by one, in float32, in 16 bits, and in float32 with 16-bit products (autocast).
"""

from math import prod

from puna.arch.attention_pattern import LayerPattern
from puna.arch.config import ModelConfig
from puna.arch.modules import LINEARS, linear_shapes, shares_input
from puna.planning.counting import lora_parameters
from puna.planning.local_attention import attention_bytes
from puna.planning.settings import LoraTraining, Settings

__all__ = ["layer_activations", "layer_bytes", "weight_copies"]


def layer_bytes(config: ModelConfig, settings: Settings, pattern: LayerPattern) -> int:
    """One layer from forward to backward: its tokens' tensors, and the copies of weights that its products keep."""
    local = attention_bytes(config, settings, pattern) if settings.is_own else 0
    return settings.tokens * sum(layer_activations(config, settings).values()) + weight_copies(config, settings) + local


def layer_activations(config: ModelConfig, settings: Settings) -> dict[str, int]:
    """Bytes per token that one layer keeps from forward to backward, by tensor (math.md's `a` is their sum).

    A Linear keeps its input only if it is trained or has an adapter; a frozen one needs its weight alone. This project's own
    nodes form a norm's output and the gated product again.
    """
    s, c, d, f = settings.compute_bytes, settings.product_bytes, config.dim, config.ffn_dim
    q, kv = config.q_dim, config.kv_dim
    parts = {
        "norm_inputs": s * 2 * d if config.norm != "none" else 0,
        "attention_input": c * d * _copies_of_norm_output(config, settings, "q_proj"),
        "queries": c * q,
        "keys": c * kv,
        "values": c * kv,
        "log_sum_exp": 4 * config.n_heads,
        "attention_output": c * q,
        "feed_forward_input": c * d * _copies_of_norm_output(config, settings, "up_proj"),
        "gate": c * f if config.is_gated else 0,
        "up": c * f,
        "activated_gate": c * f,
        "product": c * f * _copies_of_derived_input(settings, "down_proj"),
    }
    if isinstance(settings.method, LoraTraining):
        targets = _targets(settings.method)
        parts["lora_middle"] = c * sum(map(settings.method.rank_of, targets))
        if settings.method.magnitudes:
            shapes = linear_shapes(config)
            parts["dora_outputs"] = c * sum(shapes[name][0] for name in targets)
    return parts | _unfused_activations(config, settings) | _own_activations(config, settings)


def weight_copies(config: ModelConfig, settings: Settings) -> int:
    """16-bit copies of a layer's weights that its products keep for the way back, in this project's own layers.

    Of a Linear in a group that an adapter splits, and of an adapted one, the whole weight under autocast; what multiplies as
    a node of ours is cast again instead: all other groups, an adapter beside a dense base. Of any other adapter its factors.
    """
    if not settings.is_own or settings.product_bytes == 4:
        return 0
    shapes, factors, targets, in_nodes = linear_shapes(config), 0, set[str](), set[str]()
    if isinstance(settings.method, LoraTraining):
        method, targets = settings.method, set(_targets(settings.method))
        layers = lora_parameters(config, method.rank, targets, method.ranks)
        factors = layers // config.n_layers * (2 if method.starts else 1)
        if _multiplies_as_node(settings):
            factors, in_nodes = 0, targets
    copied = [name for name in LINEARS if targets & set(shares_input(name))]
    weights = sum(prod(shapes[name]) for name in copied if name not in in_nodes) if settings.autocast else 0
    return 2 * (weights + factors)


def _copies_of_norm_output(config: ModelConfig, settings: Settings, name: str) -> int:
    """How often what a norm gives `name` is kept: as it is by products wherever it cannot be formed again."""
    is_formed_again = config.norm_placement == "pre" and config.norm in ("rms", "layer")
    return _copies_of_derived_input(settings, name) if is_formed_again else 1


def _copies_of_derived_input(settings: Settings, name: str) -> int:
    """How often the input that `name` shares is kept: not at all by one node of ours (model/linears/derived.py); else under
    autocast every adapter casts its own.
    """
    if not isinstance(method := settings.method, LoraTraining):
        return 0 if settings.is_own else 1
    group = set(shares_input(name))
    adapted = len(group & set(method.targets))
    if settings.is_own and _multiplies_as_node(settings) and not method.magnitudes and adapted == len(group):
        return 0
    return adapted if settings.autocast else min(1, adapted)


def _multiplies_as_node(settings: Settings) -> bool:
    """Whether an adapter and its base are one product of this project's own (model/linears/lora.py)."""
    method = settings.method
    is_dense = settings.base in ("float32", "bfloat16")
    return isinstance(method, LoraTraining) and not method.starts and is_dense


def _targets(method: LoraTraining) -> tuple[str, ...]:
    return tuple(name for name in method.targets if name in LINEARS)


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


def _own_activations(config: ModelConfig, settings: Settings) -> dict[str, int]:
    """What this project's own layers keep otherwise: of two norms 1 / rms, or mean and 1 / std; silu(gate) is formed again."""
    per_norm = {"rms": 4, "layer": 8, "batch": 0, "none": 0}[config.norm]
    return {"inverse_rms": 2 * per_norm, "activated_gate": 0} if settings.is_own else {}
