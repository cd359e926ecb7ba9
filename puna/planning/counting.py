"""Parameters and cache bytes, counted from a config.

    N_lin = L (2 d h d_h + 2 d g d_h + 3 d f);   parameters = N_lin + 2 L d + d + V d (x 2 if untied)
    LoRA  = r L (sum of d_in + d_out over the target Linears of a layer);   cache = 2 L g d_h bytes per token and byte

Source: docs/math.md section 3.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from puna.arch.attention_pattern import Causal
from puna.arch.config import ModelConfig
from puna.arch.modules import (
    EMBEDDING,
    HEAD,
    LINEAR_GROUPS,
    LINEARS,
    learned_vectors,
    linear_path,
    linear_shapes,
    linear_size,
    norm_parameters,
    parameter_count,
    position_rows,
)

__all__ = [
    "attended_pairs",
    "attended_share",
    "embedding_parameters",
    "group_parameters",
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
    """Those of the Linears inside the layers (N_lin), and their biases."""
    return config.n_layers * sum(linear_size(config, name) for name in LINEARS)


def group_parameters(config: ModelConfig, group: str) -> int:
    """Those of a group of Linears of one layer, `attention` or `mlp`, their biases included."""
    return sum(linear_size(config, name) for name in LINEAR_GROUPS[group])


def embedding_parameters(config: ModelConfig) -> int:
    """The table of input vectors, and that of positions where it is learned."""
    return (config.vocab_size + position_rows(config)) * config.dim


def head_parameters(config: ModelConfig) -> int:
    """Those of the output projection; only a bias where its weight is the embedding itself."""
    weight = 0 if config.tied_embeddings else config.vocab_size * config.dim
    return weight + config.vocab_size * config.head_bias


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter under its name in the model; a tied head does not appear."""
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, config.dim)}
    if config.position == "learned":
        shapes["position.weight"] = (config.max_seq_len, config.dim)
    vectors = learned_vectors(config)
    for layer in range(config.n_layers):
        for name, shape in linear_shapes(config).items():
            shapes[f"{linear_path(layer, name)}.weight"] = shape
            if config.is_biased(name):
                shapes[f"{linear_path(layer, name)}.bias"] = shape[:1]
        shapes |= {f"layers.{layer}.{norm}.{name}": (config.dim,) for norm in config.norm_names for name in vectors}
        if config.has_sinks(layer):
            shapes[f"layers.{layer}.self_attn.sinks.weight"] = (config.n_heads,)
    if config.norm_placement == "pre":
        shapes |= {f"norm.{name}": (config.dim,) for name in vectors}
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.dim)
    if config.head_bias:
        shapes["lm_head.bias"] = (config.vocab_size,)
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
    """What an adapter adds to each target that there is, of one layer: rank (d_in + d_out), and d_out magnitudes of a DoRA.

    Args: ranks: where they differ from `rank`, by target.
    """
    shapes = target_shapes(config)
    there = [name for name in targets if name in shapes]
    return {name: ranks.get(name, rank) * sum(shapes[name]) + magnitudes * shapes[name][0] for name in there}


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


def attended_share(config: ModelConfig, tokens: int) -> float:
    """Of the pairs that causal attention sees in a sequence of `tokens` the share that the model's own sees."""
    return attended_pairs(config, tokens) / attended_pairs(replace(config, pattern=Causal()), tokens)


def kv_cache_bytes_per_token(config: ModelConfig, bytes_per_number: int = 2) -> int:
    """Keys and values of one token in every layer."""
    return 2 * config.n_layers * config.kv_dim * bytes_per_number


def kv_cache_bytes(config: ModelConfig, tokens: int, bytes_per_number: int = 2) -> int:
    """Keys and values that a sequence of `tokens` leaves; layers that see no further than a window keep it and its sinks."""
    kept = sum(layers * pattern.kept(tokens) for pattern, layers in config.layer_patterns.items())
    return kept * 2 * config.kv_dim * bytes_per_number
