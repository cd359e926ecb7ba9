"""Meta's folders, without torch: params.json <-> ModelConfig, and how consolidated.NN.pth files join to whole tensors.

    ffn_dim = round_up(int(ffn_dim_multiplier * int(2 * 4 * dim / 3)), multiple_of)

params.json says neither RoPE's factor nor the context; both follow from what it does say, or are asked for. Shards are
slices along the axis on which a Linear was split over devices; norms stand in each of them.
Format: docs/formats.md 3; source: the public llama and llama-models code.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from puna.arch.config import ModelConfig
from puna.arch.rope_scaling import Llama3Scaling, NoScaling, RopeScaling
from puna.errors import FormatError, UsageError
from puna.weights.checkpoint import CheckpointConfig
from puna.weights.names import ExpectedTensor
from puna.weights.strict_json import JsonObject
from puna.weights.tensor_header import TensorHeader

__all__ = [
    "PARAMS_FILE",
    "MetaSettings",
    "consolidated_files",
    "join_axis",
    "meta_config",
    "meta_params",
    "meta_unsaid",
]

PARAMS_FILE = "params.json"
_SHARD = re.compile(r"consolidated\.(\d{2})\.pth")
_KNOWN = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier"),
    *("norm_eps", "rope_theta", "use_scaled_rope"),
}
_SHARED_BY_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")  # split along the first axis; wo and w2 along the second
_SHARED_BY_COLUMNS = ("wo", "w2")
_FACTOR_32 = {(2048, 16), (3072, 28)}  # (dim, n_layers) of Llama 3.2 1B and 3B, as Hugging Face's converter has it
_LONG_CONTEXT, _LLAMA_3_CONTEXT, _LLAMA_3_THETA = 131_072, 8192, 500_000.0
_FFN_RULES = ((None, 256), (1.3, 4096), (1.3, 1024), (1.2, 4096), (1.5, 256), (1.0, 256))  # of the released models


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaSettings:
    """What a Meta folder leaves unsaid; None takes what the released models mean."""

    meta_max_seq_len: int | None = None
    meta_rope_factor: float | None = None

    def check_used(self, kind: str) -> None:
        """Errors: UsageError naming a setting that a checkpoint of another format has no use for."""
        for item in fields(self):
            if kind != "meta" and getattr(self, item.name) is not None:
                raise UsageError(
                    f"weights.{item.name}: expected a Meta folder, got a checkpoint of format {kind}",
                    "leave the setting out: this checkpoint says it itself",
                )


def consolidated_files(folder: Path) -> list[str]:
    """The names of the shards, in order. Errors: FormatError where one is missing between them."""
    names = sorted(path.name for path in folder.glob("consolidated.*.pth"))
    expected = [f"consolidated.{index:02d}.pth" for index in range(len(names))]
    for name, wanted in zip(names, expected, strict=True):
        if name != wanted:
            raise FormatError(folder, "shards", wanted, name, "every shard from consolidated.00.pth on is needed")
    if not names:
        raise FormatError(folder, "shards", "consolidated.00.pth", "nothing")
    return names


def meta_config(
    record: JsonObject, tensors: Sequence[TensorHeader], settings: MetaSettings, *, is_tied: bool
) -> CheckpointConfig:
    """The model that params.json and the tensors describe together.

    Args:   is_tied: the head is the embedding, bit for bit.
    Errors: FormatError naming the key: an unknown one, or one that is needed and missing.
    """
    for key in record.values.keys() - _KNOWN:
        raise record.refuse(key, "nothing (an unknown key)", "vision, quantised and LoRA checkpoints are not read")
    dim, heads = record.integer("dim"), record.integer("n_heads")
    if dim % heads:
        raise record.refuse("n_heads", f"a divisor of dim = {dim}")
    scaling, notices = _rope_scaling(record, settings)
    try:
        model = ModelConfig(
            vocab_size=_vocab_size(record, tensors, dim),
            dim=dim,
            n_layers=record.integer("n_layers"),
            n_heads=heads,
            n_kv_heads=heads if record.values.get("n_kv_heads") is None else record.integer("n_kv_heads"),
            head_dim=dim // heads,
            ffn_dim=_ffn_width(dim, _multiplier(record), record.integer("multiple_of")),
            max_seq_len=_max_seq_len(record, settings),
            rope_theta=record.number("rope_theta", 10_000.0),
            rope_scaling=scaling,
            norm_eps=record.number("norm_eps"),
            tied_embeddings=is_tied,
        )
    except UsageError as error:
        raise FormatError(record.path, "params", "the numbers of a Llama", error.message, error.hint) from None
    return CheckpointConfig(
        format="meta", model=model, linears=(), bos_id=None, eos_ids=(), dtype=None, notices=notices
    )


def meta_params(config: ModelConfig) -> dict[str, Any]:
    """The params.json of a model. Errors: UsageError for what the format cannot say."""
    if config.head_dim * config.n_heads != config.dim:
        raise _cannot_say(f"heads of {config.head_dim} in a width of {config.dim}")
    if not isinstance(config.rope_scaling, NoScaling | Llama3Scaling):
        raise _cannot_say(f"RoPE scaling of kind {config.rope_scaling.kind}")
    scaling = config.rope_scaling
    if isinstance(scaling, Llama3Scaling) and scaling != Llama3Scaling(factor=scaling.factor):
        raise _cannot_say("llama3 scaling other than low 1, high 4, old context 8192")
    multiplier, multiple_of = _ffn_rule(config)
    return {
        "dim": config.dim,
        **({} if multiplier is None else {"ffn_dim_multiplier": multiplier}),
        "multiple_of": multiple_of,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "n_layers": config.n_layers,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        **({"use_scaled_rope": True} if isinstance(scaling, Llama3Scaling) else {}),
        "vocab_size": config.vocab_size,
    }


def meta_unsaid(config: ModelConfig) -> list[str]:
    """What a reader of a model's Meta folder must say himself, since the format stores it nowhere and the default is another."""
    scaling, unsaid = config.rope_scaling, []
    is_scaled = isinstance(scaling, Llama3Scaling)
    if config.max_seq_len != _default_context(config.rope_theta, is_scaled=is_scaled):
        unsaid.append(f"the context: --set weights.meta_max_seq_len={config.max_seq_len} reads it back")
    if isinstance(scaling, Llama3Scaling) and scaling.factor != _default_factor(config.dim, config.n_layers)[0]:
        unsaid.append(f"RoPE's factor: --set weights.meta_rope_factor={scaling.factor:g} reads it back")
    return unsaid


def _default_factor(dim: int, n_layers: int) -> tuple[float, str]:
    """RoPE's factor, and the release that has it."""
    return (32.0, "Llama 3.2") if (dim, n_layers) in _FACTOR_32 else (8.0, "Llama 3.1")


def _default_context(theta: float, *, is_scaled: bool) -> int | None:
    """The context that a release with this base has; None where the base does not tell."""
    if is_scaled:
        return _LONG_CONTEXT
    return _LLAMA_3_CONTEXT if theta == _LLAMA_3_THETA else None


def join_axis(folder: Path, expected: ExpectedTensor, pieces: Sequence[TensorHeader]) -> int | None:
    """The axis along which the shards of a tensor join; None: each shard holds the whole of it.

    Errors: FormatError: shapes that are no equal slices of the expected one, or differing types.
    """
    count, module = len(pieces), expected.name.split(".")[-2]
    shape = pieces[0].shape
    if module in _SHARED_BY_ROWS or (module == "tok_embeddings" and shape[1:] == expected.shape[1:]):
        axis = 0
    elif module in _SHARED_BY_COLUMNS or module == "tok_embeddings":
        axis = 1
    else:
        axis = None
    slices = tuple(size // count if index == axis else size for index, size in enumerate(expected.shape))
    for piece in pieces:
        is_whole = axis is None or expected.shape[axis] % count == 0
        if (
            piece.shape != slices
            or not is_whole
            or piece.dtype != pieces[0].dtype
            or piece.dtype not in expected.dtypes
        ):
            wanted = f"{slices}, {'all' if axis is None else f'1 / {count}'} of {expected.shape}, one float type"
            raise FormatError(folder / piece.file, expected.name, wanted, f"{piece.shape} of {piece.dtype}")
    return None if count == 1 else axis


def _ffn_width(dim: int, multiplier: float | None, multiple_of: int) -> int:
    """Meta's rule for the width of the feed-forward part."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


def _ffn_rule(config: ModelConfig) -> tuple[float | None, int]:
    """A (multiplier, multiple_of) that gives the width: a released model's, else multiples of 1."""
    base = int(2 * (4 * config.dim) / 3)
    for multiplier, multiple_of in (*_FFN_RULES, (config.ffn_dim / base, 1), ((config.ffn_dim + 0.5) / base, 1)):
        if _ffn_width(config.dim, multiplier, multiple_of) == config.ffn_dim:
            return multiplier, multiple_of
    raise _cannot_say(f"a feed-forward width of {config.ffn_dim} beside {config.dim}")


def _cannot_say(what: str) -> UsageError:
    return UsageError(f"Meta's format cannot say {what}", "convert to hf or gguf")


def _multiplier(record: JsonObject) -> float | None:
    return None if record.values.get("ffn_dim_multiplier") is None else record.number("ffn_dim_multiplier")


def _vocab_size(record: JsonObject, tensors: Sequence[TensorHeader], dim: int) -> int:
    """-1 means the embedding's rows; its shards are slices of rows (Llama 3) or of columns."""
    if record.values.get("vocab_size") != -1:
        return record.integer("vocab_size")
    shapes = [tensor.shape for tensor in tensors if tensor.name == "tok_embeddings.weight"]
    if not shapes or len(shapes[0]) != 2:
        raise FormatError(record.path, "tok_embeddings.weight", "a matrix, since vocab_size is -1", "nothing")
    return sum(shape[0] for shape in shapes) if shapes[0][1] == dim else shapes[0][0]


def _rope_scaling(record: JsonObject, settings: MetaSettings) -> tuple[RopeScaling, tuple[str, ...]]:
    if not record.flag("use_scaled_rope", default=False):
        return NoScaling(), ()
    if settings.meta_rope_factor is not None:
        return Llama3Scaling(factor=settings.meta_rope_factor), ()
    factor, like = _default_factor(record.integer("dim"), record.integer("n_layers"))
    notice = (
        f"{record.path}: RoPE's factor is not stored; {factor:g} taken, as in {like} "
        "(--set weights.meta_rope_factor=N says otherwise)"
    )
    return Llama3Scaling(factor=factor), (notice,)


def _max_seq_len(record: JsonObject, settings: MetaSettings) -> int:
    if settings.meta_max_seq_len is not None:
        return settings.meta_max_seq_len
    is_scaled = record.flag("use_scaled_rope", default=False)
    context = _default_context(record.number("rope_theta", 10_000.0), is_scaled=is_scaled)
    if context is not None:
        return context
    raise FormatError(
        record.path, "context", "a length, which Meta's format does not store", "rope_theta of Llama 1 or 2",
        "puna weights convert FOLDER OUT --to hf --set weights.meta_max_seq_len=4096 (Llama 2; 2048 for Llama 1)",
    )  # fmt: skip
