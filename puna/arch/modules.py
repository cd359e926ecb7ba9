"""The Linears of a Llama by name, path, shape and group."""

from collections.abc import Iterator, Sequence

from puna.arch.config import ModelConfig
from puna.errors import unknown_name

__all__ = [
    "ADAPTABLE",
    "EMBEDDING",
    "HEAD",
    "LINEARS",
    "LINEAR_GROUPS",
    "linear_path",
    "linear_paths",
    "linear_shapes",
    "match_linears",
    "match_targets",
    "parameter_count",
    "read_one_input",
    "shares_input",
    "target_paths",
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
EMBEDDING, HEAD = "embed_tokens", "lm_head"
ADAPTABLE = (EMBEDDING, *LINEARS, HEAD)
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
    return _match(text, LINEARS)


def match_targets(text: str) -> tuple[str, ...]:
    """What an adapter may stand beside: as `match_linears`, and `embed_tokens` and `lm_head` by their own names.

    Errors: UsageError offering the nearest name.
    """
    return _match(text, ADAPTABLE)


def target_paths(config: ModelConfig, targets: tuple[str, ...]) -> Iterator[str]:
    """The paths of an adapter's targets: the embedding, the blocks' Linears layer by layer, the head."""
    if EMBEDDING in targets:
        yield EMBEDDING
    yield from linear_paths(config, tuple(name for name in LINEARS if name in targets))
    if HEAD in targets:
        yield HEAD


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the dense model; a tied head counts once."""
    layer = sum(d_out * d_in for d_out, d_in in linear_shapes(config).values()) + 2 * config.dim
    tables = 1 if config.tied_embeddings else 2
    sinks = config.sink_layers * config.n_heads
    return tables * config.vocab_size * config.dim + config.n_layers * layer + config.dim + sinks


def shares_input(name: str) -> tuple[str, ...]:
    """The Linears that read the same input as `name`, itself included."""
    return _SHARED_INPUT.get(name, (name,))


def read_one_input(paths: Sequence[str]) -> bool:
    """Whether these are two or more Linears of one layer that read the same input, in model order."""
    parents = {path.rpartition(".")[0] for path in paths}
    names = [path.rpartition(".")[2] for path in paths]
    return len(parents) == 1 < len(paths) and names == [name for name in shares_input(names[0]) if name in names]


def _match(text: str, names: tuple[str, ...]) -> tuple[str, ...]:
    wanted: set[str] = set()
    for part in (piece.strip() for piece in text.split(",")):
        if part in LINEAR_GROUPS:
            wanted.update(LINEAR_GROUPS[part])
        elif part in names:
            wanted.add(part)
        else:
            raise unknown_name("linear", part, (*LINEAR_GROUPS, *names))
    return tuple(name for name in names if name in wanted)
