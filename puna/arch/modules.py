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
    "learned_vectors",
    "linear_path",
    "linear_paths",
    "linear_shapes",
    "linear_size",
    "match_linears",
    "match_targets",
    "norm_count",
    "norm_parameters",
    "parameter_count",
    "position_rows",
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
    """(d_out, d_in) of each Linear of a layer, in the order of use; without a gate there is no gate_proj."""
    d, q, kv, f = config.dim, config.q_dim, config.kv_dim, config.ffn_dim
    shapes = dict(zip(LINEARS, ((q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)), strict=True))
    return {name: shape for name, shape in shapes.items() if name != "gate_proj" or config.is_gated}


def linear_path(layer: int, name: str) -> str:
    """Where a Linear stands in the model: `layers.3.self_attn.q_proj`."""
    return f"layers.{layer}.{_PARENT[name]}.{name}"


def linear_paths(config: ModelConfig, names: tuple[str, ...] = LINEARS) -> Iterator[str]:
    """The paths of the named Linears that there are, layer by layer."""
    there = linear_shapes(config)
    for layer in range(config.n_layers):
        for name in names:
            if name in there:
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
    layer = sum(linear_size(config, name) for name in linear_shapes(config))
    tables = (1 if config.tied_embeddings else 2) * config.vocab_size + position_rows(config)
    head_bias = config.vocab_size * config.head_bias
    return tables * config.dim + config.n_layers * layer + norm_parameters(config) + head_bias


def linear_size(config: ModelConfig, name: str) -> int:
    """Those of one Linear of a layer, its bias included; 0 where there is none of that name."""
    d_out, d_in = linear_shapes(config).get(name, (0, 0))
    return d_out * d_in + d_out * config.is_biased(name)


def norm_count(config: ModelConfig) -> int:
    """Norms of the whole model."""
    return len(config.norm_names) * config.n_layers + (config.norm_placement == "pre")


def norm_parameters(config: ModelConfig) -> int:
    """What the norms learn, and the sinks of heads that have one."""
    return norm_count(config) * len(learned_vectors(config)) * config.dim + config.sink_layers * config.n_heads


def learned_vectors(config: ModelConfig) -> tuple[str, ...]:
    """What each norm stores and learns; the others it measures."""
    return tuple(name for name in config.norm_vectors if not name.startswith("running"))


def position_rows(config: ModelConfig) -> int:
    """Of a learned table of positions; 0 where they are computed."""
    return config.max_seq_len if config.position == "learned" else 0


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
