"""Parameters and cache bytes, counted from a config.

    N_lin = L (2 d h d_h + 2 d g d_h + 3 d f);   parameters = N_lin + 2 L d + d + V d (x 2 if untied)
    LoRA  = r L (sum of d_in + d_out over the target Linears of a layer);   cache = 2 L g d_h bytes per token and byte

Source: docs/math.md section 3.
"""

from collections.abc import Iterable, Mapping
from math import prod
from types import MappingProxyType

from puna.arch.config import ModelConfig
from puna.arch.modules import EMBEDDING, HEAD, LINEARS, linear_path, linear_shapes, parameter_count

__all__ = [
    "attended_pairs",
    "embedding_parameters",
    "head_parameters",
    "kv_cache_bytes",
    "kv_cache_bytes_per_token",
    "linear_parameters",
    "lora_parameters",
    "lora_per_module",
    "norm_parameters",
    "parameter_count",
    "parameter_shapes",
    "target_shapes",
]


def linear_parameters(config: ModelConfig) -> int:
    """Those of the Linears inside the layers (N_lin)."""
    return config.n_layers * sum(prod(shape) for shape in linear_shapes(config).values())


def norm_parameters(config: ModelConfig) -> int:
    """The gains of two norms for each layer and of the final one, and the sinks of heads that have one."""
    return (2 * config.n_layers + 1) * config.dim + config.sink_layers * config.n_heads


def embedding_parameters(config: ModelConfig) -> int:
    """The table of input vectors."""
    return config.vocab_size * config.dim


def head_parameters(config: ModelConfig) -> int:
    """Those of the output projection; 0 where it is the embedding itself."""
    return 0 if config.tied_embeddings else config.vocab_size * config.dim


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter under its name in the model; a tied head does not appear."""
    linears = linear_shapes(config)
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, config.dim)}
    for layer in range(config.n_layers):
        shapes |= {f"{linear_path(layer, name)}.weight": shape for name, shape in linears.items()}
        shapes[f"layers.{layer}.input_layernorm.weight"] = (config.dim,)
        shapes[f"layers.{layer}.post_attention_layernorm.weight"] = (config.dim,)
        if config.has_sinks(layer):
            shapes[f"layers.{layer}.self_attn.sinks.weight"] = (config.n_heads,)
    shapes["norm.weight"] = (config.dim,)
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.dim)
    return shapes


def target_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of what an adapter may stand beside; the embedding is a Linear from the vocabulary."""
    return {
        EMBEDDING: (config.dim, config.vocab_size),
        **linear_shapes(config),
        HEAD: (config.vocab_size, config.dim),
    }


def lora_per_module(
    config: ModelConfig,
    rank: int,
    targets: Iterable[str] = LINEARS,
    ranks: Mapping[str, int] = MappingProxyType({}),
    *,
    magnitudes: bool = False,
) -> dict[str, int]:
    """What an adapter adds to each target, of one layer: rank (d_in + d_out), and d_out magnitudes of a DoRA.

    Args: ranks: where they differ from `rank`, by target.
    """
    shapes = target_shapes(config)
    return {name: ranks.get(name, rank) * sum(shapes[name]) + magnitudes * shapes[name][0] for name in targets}


def lora_parameters(
    config: ModelConfig,
    rank: int,
    targets: Iterable[str] = LINEARS,
    ranks: Mapping[str, int] = MappingProxyType({}),
    *,
    magnitudes: bool = False,
) -> int:
    """What an adapter adds in all; independent of alpha."""
    each = lora_per_module(config, rank, targets, ranks, magnitudes=magnitudes)
    return sum(count * (config.n_layers if name in LINEARS else 1) for name, count in each.items())


def attended_pairs(config: ModelConfig, tokens: int) -> int:
    """Visible (query, key) pairs of a sequence of `tokens`, over all heads of all layers."""
    pairs = 0
    for pattern, layers in config.layer_patterns.items():
        heads = config.n_heads // len(pattern.parts)
        pairs += layers * heads * sum(part.attended(tokens) for part in pattern.parts)
    return pairs


def kv_cache_bytes_per_token(config: ModelConfig, bytes_per_number: int = 2) -> int:
    """Keys and values of one token in every layer."""
    return 2 * config.n_layers * config.kv_dim * bytes_per_number


def kv_cache_bytes(config: ModelConfig, tokens: int, bytes_per_number: int = 2) -> int:
    """Keys and values that a sequence of `tokens` leaves; layers that see no further than a window keep it and its sinks."""
    kept = sum(layers * pattern.kept(tokens) for pattern, layers in config.layer_patterns.items())
    return kept * 2 * config.kv_dim * bytes_per_number
