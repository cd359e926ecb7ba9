"""The Linears of a Llama by name, path, shape and group."""

from collections.abc import Iterator

from puna.arch.config import ModelConfig
from puna.errors import unknown_name

__all__ = [
    "LINEARS",
    "LINEAR_GROUPS",
    "linear_path",
    "linear_paths",
    "linear_shapes",
    "match_linears",
    "parameter_count",
    "shares_input",
]

_PARENT = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
LINEARS = tuple(_PARENT)
LINEAR_GROUPS = {"all": LINEARS, "attention": LINEARS[:4], "mlp": LINEARS[4:]}
_SHARED_INPUT = {name: group for group in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")) for name in group}


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of each Linear of a layer, in the order of use."""
    d, q, kv, f = config.dim, config.q_dim, config.kv_dim, config.ffn_dim
    return dict(zip(LINEARS, ((q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)), strict=True))


def linear_path(layer: int, name: str) -> str:
    """Where a Linear stands in the model: `layers.3.self_attn.q_proj`."""
    return f"layers.{layer}.{_PARENT[name]}.{name}"


def linear_paths(config: ModelConfig, names: tuple[str, ...] = LINEARS) -> Iterator[str]:
    """The paths of the named Linears, layer by layer."""
    for layer in range(config.n_layers):
        for name in names:
            yield linear_path(layer, name)


def match_linears(text: str) -> tuple[str, ...]:
    """`all`, `attention`, `mlp` or names joined by commas -> Linear names in model order.

    Errors: UsageError offering the nearest name.
    """
    wanted: set[str] = set()
    for part in (piece.strip() for piece in text.split(",")):
        if part in LINEAR_GROUPS:
            wanted.update(LINEAR_GROUPS[part])
        elif part in LINEARS:
            wanted.add(part)
        else:
            raise unknown_name("linear", part, (*LINEAR_GROUPS, *LINEARS))
    return tuple(name for name in LINEARS if name in wanted)


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the dense model; a tied head counts once."""
    layer = sum(d_out * d_in for d_out, d_in in linear_shapes(config).values()) + 2 * config.dim
    tables = 1 if config.tied_embeddings else 2
    return tables * config.vocab_size * config.dim + config.n_layers * layer + config.dim


def shares_input(name: str) -> tuple[str, ...]:
    """The Linears that read the same input as `name`, itself included."""
    return _SHARED_INPUT.get(name, (name,))
