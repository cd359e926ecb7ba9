"""The one name table: a parameter's path in our model, its name in a file, and the shape and type it has there.

A plain Llama is stored under Hugging Face's names (`model.` before every path but the head's). A model that
LlamaForCausalLM does not compute is stored under `puna.` throughout, so that nothing can load it by mistake.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_path, linear_shapes
from puna.weights.tensor_header import FLOATS

__all__ = [
    "ExpectedTensor",
    "Int8Entry",
    "LinearEntry",
    "LowRankEntry",
    "expected_tensors",
    "from_hf",
    "to_hf",
    "to_puna",
]


def to_hf(path: str) -> str:
    """`layers.0.mlp.up_proj.weight` -> `model.layers.0.mlp.up_proj.weight`; the head keeps its name."""
    return path if path.startswith("lm_head.") else f"model.{path}"


def from_hf(name: str) -> str:
    """The inverse of `to_hf`."""
    return name.removeprefix("model.")


def to_puna(path: str) -> str:
    """The name in a folder that is no plain Llama."""
    return f"puna.{path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankEntry:
    """A Linear stored as two factors, W = U V."""

    path: str
    kind: Literal["low_rank"] = "low_rank"
    rank: int

    def tensors(self, d_out: int, d_in: int) -> dict[str, tuple[tuple[int, int], frozenset[str]]]:
        """(shape, types) of what stands under the path."""
        return {"U": ((d_out, self.rank), FLOATS), "V": ((self.rank, d_in), FLOATS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Entry:
    """A Linear stored as int8 codes with one float32 scale for each output row."""

    path: str
    kind: Literal["int8"] = "int8"

    def tensors(self, d_out: int, d_in: int) -> dict[str, tuple[tuple[int, int], frozenset[str]]]:
        """(shape, types) of what stands under the path."""
        return {"weight": ((d_out, d_in), frozenset({"I8"})), "scale": ((d_out, 1), frozenset({"F32"}))}


LinearEntry = LowRankEntry | Int8Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTensor:
    """A tensor that a checkpoint must hold: where it goes, what it is called there, and what it may be."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtypes: frozenset[str]

    @property
    def is_converted(self) -> bool:
        """Whether it takes the model's type; codes and their scales keep their own."""
        return self.dtypes == FLOATS


def expected_tensors(
    config: ModelConfig, linears: Sequence[LinearEntry] = (), *, plain: bool
) -> Iterator[ExpectedTensor]:
    """Every tensor of a checkpoint, in model order; lazily, so that a false number of layers costs nothing."""
    rename = to_hf if plain else to_puna
    for path, shape, dtypes in _stored(config, {entry.path: entry for entry in linears}):
        yield ExpectedTensor(path=path, name=rename(path), shape=shape, dtypes=dtypes)


def _stored(
    config: ModelConfig, entries: dict[str, LinearEntry]
) -> Iterator[tuple[str, tuple[int, ...], frozenset[str]]]:
    table = (config.vocab_size, config.dim)
    yield "embed_tokens.weight", table, FLOATS
    for layer in range(config.n_layers):
        for name, (d_out, d_in) in linear_shapes(config).items():
            path = linear_path(layer, name)
            if path not in entries:
                yield f"{path}.weight", (d_out, d_in), FLOATS
                continue
            for suffix, (shape, dtypes) in entries[path].tensors(d_out, d_in).items():
                yield f"{path}.{suffix}", shape, dtypes
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"layers.{layer}.{norm}.weight", (config.dim,), FLOATS
    yield "norm.weight", (config.dim,), FLOATS
    if not config.tied_embeddings:
        yield "lm_head.weight", table, FLOATS
