"""The one name table: a parameter's path in our model, its name in each format, and the shape and type it has there.

    ours and peft's                        Hugging Face         Meta                        GGUF
    embed_tokens                           model.embed_tokens   tok_embeddings              token_embd
    layers.0.self_attn.q_proj              model. + the path    layers.0.attention.wq       blk.0.attn_q
    norm                                   model.norm           norm                        output_norm
    lm_head                                lm_head              output                      output

A model that LlamaForCausalLM does not compute is stored under `puna.` throughout, so that nothing can load it by mistake.
Meta and GGUF keep the rows of q and k interleaved, for RoPE over pairs (2j, 2j + 1): `rotated_heads` says of what.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_path, linear_shapes, position_rows
from puna.arch.rounding import BLOCK_BYTES, BLOCK_NUMBERS, NF4_MAXIMA, NF4_NUMBERS, Rounding
from puna.weights.tensor_header import BLOCKS, FLOATS

__all__ = [
    "CorrectedEntry",
    "ExpectedTensor",
    "Format",
    "FusedEntry",
    "LinearEntry",
    "LowRankEntry",
    "RoundedEntry",
    "entry_of_each",
    "expected_tensors",
    "from_hf",
    "name_in",
    "rotated_heads",
    "to_hf",
]

Format = Literal["hf", "puna", "meta", "gguf"]
Shapes = dict[str, tuple[tuple[int, ...], frozenset[str]]]

_TOP = {
    "embed_tokens": ("tok_embeddings", "token_embd"),
    "norm": ("norm", "output_norm"),
    "lm_head": ("output", "output"),
}
_IN_LAYER = {  # path below layers.N -> (Meta's below layers.N, GGUF's below blk.N)
    "input_layernorm": ("attention_norm", "attn_norm"),
    "self_attn.q_proj": ("attention.wq", "attn_q"),
    "self_attn.k_proj": ("attention.wk", "attn_k"),
    "self_attn.v_proj": ("attention.wv", "attn_v"),
    "self_attn.o_proj": ("attention.wo", "attn_output"),
    "post_attention_layernorm": ("ffn_norm", "ffn_norm"),
    "mlp.gate_proj": ("feed_forward.w1", "ffn_gate"),
    "mlp.up_proj": ("feed_forward.w3", "ffn_up"),
    "mlp.down_proj": ("feed_forward.w2", "ffn_down"),
}


def to_hf(path: str) -> str:
    """`layers.0.mlp.up_proj.weight` -> `model.layers.0.mlp.up_proj.weight`; the head keeps its name."""
    return path if path.startswith("lm_head.") else f"model.{path}"


def from_hf(name: str) -> str:
    """The inverse of `to_hf`."""
    return name.removeprefix("model.")


def name_in(kind: Format, path: str) -> str:
    """What a format calls a parameter. Args: path: ours, such as `layers.0.mlp.up_proj.weight`."""
    if kind in ("hf", "puna"):
        return to_hf(path) if kind == "hf" else f"puna.{path}"
    column, blocks = (0, "layers") if kind == "meta" else (1, "blk")
    module, _, suffix = path.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module][column]}.{suffix}"
    _, layer, part = module.split(".", 2)
    return f"{blocks}.{layer}.{_IN_LAYER[part][column]}.{suffix}"


def rotated_heads(config: ModelConfig, path: str) -> int | None:
    """The heads whose rows RoPE rotates, for q_proj and k_proj; None for any other parameter."""
    if path.endswith("q_proj.weight"):
        return config.n_heads
    return config.n_kv_heads if path.endswith("k_proj.weight") else None


def _rounded(rounding: str, d_out: int, d_in: int) -> Shapes:
    """(shape, types) of the tensors of a weight of few bits, by their names."""
    if rounding == "int8":
        return {"weight": ((d_out, d_in), frozenset({"I8"})), "scale": ((d_out, 1), frozenset({"F32"}))}
    if rounding == "nf4":
        numbers, blocks = d_out * d_in, -(-d_out * d_in // NF4_NUMBERS)
        codes: Shapes = {"codes": ((-(-numbers // 2),), frozenset({"U8"})), "maxima": ((blocks,), frozenset({"I8"}))}
        return codes | {"scales": ((-(-blocks // NF4_MAXIMA),), frozenset({"F32"})), "mean": ((), frozenset({"F32"}))}
    return {"codes": ((d_out, d_in // BLOCK_NUMBERS * BLOCK_BYTES[rounding]), frozenset({"U8"}))}


def _factor(name: str, rounding: str | None, d_out: int, d_in: int) -> Shapes:
    """A factor (d_out, d_in): dense, or of few bits below its name; U of few bits is stored as U^T."""
    if rounding is None:
        return {name: ((d_out, d_in), FLOATS)}
    shape = (d_in, d_out) if name == "U" else (d_out, d_in)
    return {f"{name}.{part}": found for part, found in _rounded(rounding, *shape).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankEntry:
    """A Linear stored as two factors, W = U V. factors: their rounding; None: dense."""

    path: str
    kind: Literal["low_rank"] = "low_rank"
    rank: int
    factors: Rounding | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Where it stands."""
        return (self.path,)

    def tensors(self, _: str, d_out: int, d_in: int) -> Shapes:
        """(shape, types) of what stands under the path."""
        return _factor("U", self.factors, d_out, self.rank) | _factor("V", self.factors, self.rank, d_in)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedEntry:
    """Linears of one input that share a factor, W_i = U_i V; V is stored under the first of them. factors: as above."""

    paths: tuple[str, ...]
    kind: Literal["fused"] = "fused"
    rank: int
    factors: Rounding | None = None

    def tensors(self, path: str, d_out: int, d_in: int) -> Shapes:
        """(shape, types) of what stands under one of the paths."""
        shared = _factor("V", self.factors, self.rank, d_in) if path == self.paths[0] else {}
        return _factor("U", self.factors, d_out, self.rank) | shared


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedEntry:
    """A Linear whose weight is stored in few bits; kind says how."""

    path: str
    kind: Rounding

    @property
    def paths(self) -> tuple[str, ...]:
        """Where it stands."""
        return (self.path,)

    def tensors(self, _: str, d_out: int, d_in: int) -> Shapes:
        """(shape, types) of what stands under the path."""
        return _rounded(self.kind, d_out, d_in)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedEntry:
    """A Linear stored as a weight of few bits and two factors that correct it, W = Q + L R."""

    path: str
    kind: Literal["corrected"] = "corrected"
    base: Rounding
    rank: int

    @property
    def paths(self) -> tuple[str, ...]:
        """Where it stands."""
        return (self.path,)

    def tensors(self, _: str, d_out: int, d_in: int) -> Shapes:
        """(shape, types) of what stands under the path."""
        base = {f"base.{name}": part for name, part in _rounded(self.base, d_out, d_in).items()}
        return {**base, "L": ((d_out, self.rank), FLOATS), "R": ((self.rank, d_in), FLOATS)}


LinearEntry = LowRankEntry | FusedEntry | RoundedEntry | CorrectedEntry


def entry_of_each(linears: Iterable[LinearEntry]) -> dict[str, LinearEntry]:
    """The entry by each path that it lists."""
    return {path: entry for entry in linears for path in entry.paths}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTensor:
    """A tensor that a checkpoint must hold: where it goes, what it is called there, and what it may be.

    module: the part of the path that names the module to be filled, a Linear of whatever kind.
    """

    path: str
    module: str
    name: str
    shape: tuple[int, ...]
    dtypes: frozenset[str]

    @property
    def is_converted(self) -> bool:
        """Whether it takes the model's type; codes and their scales keep their own."""
        return "BF16" in self.dtypes


def expected_tensors(
    config: ModelConfig, linears: Sequence[LinearEntry] = (), embedding_rank: int | None = None, *, kind: Format
) -> Iterator[ExpectedTensor]:
    """Every tensor of a checkpoint, in model order; lazily, so that a false number of layers costs nothing.

    Args: embedding_rank: of an input table that is stored as factors, which a tied head shares.
    """
    for module, suffix, shape, dtypes in _stored(config, entry_of_each(linears), embedding_rank):
        if kind == "gguf" and len(shape) > 1:
            dtypes = FLOATS | BLOCKS
        path = f"{module}.{suffix}"
        yield ExpectedTensor(path=path, module=module, name=name_in(kind, path), shape=shape, dtypes=dtypes)


def _stored(
    config: ModelConfig, entries: dict[str, LinearEntry], embedding_rank: int | None
) -> Iterator[tuple[str, str, tuple[int, ...], frozenset[str]]]:
    table = (config.vocab_size, config.dim)
    if embedding_rank is None:
        yield "embed_tokens", "weight", table, FLOATS
    else:
        factors = {"Z": (config.vocab_size, embedding_rank), "R": (embedding_rank, config.dim), "mean": (config.dim,)}
        for name, factor in factors.items():
            yield "embed_tokens", name, factor, FLOATS
    if rows := position_rows(config):
        yield "position", "weight", (rows, config.dim), FLOATS
    for layer in range(config.n_layers):
        for name, (d_out, d_in) in linear_shapes(config).items():
            yield from _linear(linear_path(layer, name), d_out, d_in, entries)
            if config.is_biased(name):
                yield linear_path(layer, name), "bias", (d_out,), FLOATS
        for norm in config.norm_names:
            yield from _vectors(f"layers.{layer}.{norm}", config)
        if config.has_sinks(layer):
            yield f"layers.{layer}.self_attn.sinks", "weight", (config.n_heads,), FLOATS
    if config.norm_placement == "pre":
        yield from _vectors("norm", config)
    if not config.tied_embeddings:
        yield from _linear("lm_head", *table, entries)
    if config.head_bias:
        yield "lm_head", "bias", (config.vocab_size,), FLOATS


def _vectors(norm: str, config: ModelConfig) -> Iterator[tuple[str, str, tuple[int, ...], frozenset[str]]]:
    for name in config.norm_vectors:
        yield norm, name, (config.dim,), FLOATS


def _linear(
    path: str, d_out: int, d_in: int, entries: dict[str, LinearEntry]
) -> Iterator[tuple[str, str, tuple[int, ...], frozenset[str]]]:
    """What stands under a Linear's path: a dense weight, or what its entry says."""
    if path not in entries:
        yield path, "weight", (d_out, d_in), FLOATS
        return
    for suffix, (shape, dtypes) in entries[path].tensors(path, d_out, d_in).items():
        yield path, suffix, shape, dtypes
