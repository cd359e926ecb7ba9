"""GGUF metadata <-> ModelConfig, for the architecture `llama`, without torch.

Llama.cpp's defaults apply where a key is missing. llama3 scaling stands in a tensor: rope_freqs.weight, E/2 divisors of
the plain frequencies; it is accepted when the scaling that it implies gives the same divisors again.
Format: docs/formats.md 6; oracles: llama.cpp, gguf 0.19.0.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from puna.arch.config import ModelConfig
from puna.arch.rope_scaling import LinearScaling, Llama3Scaling, NoScaling, RopeScaling, YarnScaling
from puna.errors import FormatError, UsageError
from puna.weights.checkpoint import CheckpointConfig, CheckpointHeader, check_tensor
from puna.weights.gguf import GgufFile, read_gguf
from puna.weights.names import expected_tensors
from puna.weights.strict_json import JsonObject
from puna.weights.tensor_header import TensorHeader

__all__ = ["ROPE_DIVISORS", "gguf_config", "gguf_metadata_of", "read_gguf_file", "rope_divisors"]

ROPE_DIVISORS = "rope_freqs.weight"
_REFUSED = (  # each would change the numbers
    *("llama.expert_count", "llama.attention.sliding_window", "llama.logit_scale", "llama.residual_scale"),
    *("llama.embedding_scale", "llama.attention.scale", "llama.rope.scale_linear", "llama.attention.clamp_kqv"),
)
_YARN_EXTRAS = (
    "attn_factor",
    "yarn_log_multiplier",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
)
_SAME = 1e-6  # relative; the divisors are stored in float32


def read_gguf_file(path: Path) -> CheckpointHeader:
    """The checkpoint in a GGUF file. Errors: FormatError."""
    file = read_gguf(path)
    stored = gguf_config(file)
    found = {tensor.name: tensor for tensor in file.tensors if tensor.name != ROPE_DIVISORS}
    if found or not file.metadata.get("tokenizer.ggml.tokens"):  # a file of a vocabulary alone is one, too
        for expected in expected_tensors(stored.model, kind="gguf"):
            check_tensor(path, expected, found.pop(expected.name, None))
    for name, tensor in found.items():
        raise FormatError(path, name, "no such tensor in this model", tensor.shape)
    return CheckpointHeader(path=path, stored=stored, tensors=file.tensors, metadata=file.metadata)


def gguf_config(file: GgufFile) -> CheckpointConfig:
    """The model that a GGUF file's metadata describes. Errors: FormatError naming the key."""
    record = JsonObject(file.path, file.metadata)
    record.one_of("general.architecture", ("llama",), expected="llama", hint="only models of the Llama family are read")
    if record.values.get("general.type", "model") != "model":
        raise record.refuse("general.type", "model", "merge the adapter into its base with the tool that wrote it")
    for key in _REFUSED:
        if record.values.get(key):
            raise record.refuse(key, "nothing", "this variant of Llama is not computed here")
    names = {tensor.name for tensor in file.tensors}
    dim, heads = record.integer("llama.embedding_length"), record.integer("llama.attention.head_count")
    try:
        model = ModelConfig(
            vocab_size=_vocab_size(record, file.tensors),
            dim=dim,
            n_layers=record.integer("llama.block_count"),
            n_heads=heads,
            n_kv_heads=record.integer("llama.attention.head_count_kv", heads),
            head_dim=_head_dim(record, dim, heads),
            ffn_dim=record.integer("llama.feed_forward_length"),
            max_seq_len=record.integer("llama.context_length"),
            rope_theta=_number(record, "llama.rope.freq_base", 10_000.0),
            rope_scaling=NoScaling(),
            norm_eps=_number(record, "llama.attention.layer_norm_rms_epsilon"),
            tied_embeddings="output.weight" not in names,
        )
        scaling = _rope_scaling(record, file, model)
    except UsageError as error:
        raise FormatError(file.path, "metadata", "the numbers of a Llama", error.message, error.hint) from None
    ends = [record.values.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    return CheckpointConfig(
        format="gguf",
        model=replace(model, rope_scaling=scaling),
        linears=(),
        bos_id=_token_id(record, "tokenizer.ggml.bos_token_id", model.vocab_size),
        eos_ids=tuple(dict.fromkeys(end for end in ends if type(end) is int and 0 <= end < model.vocab_size)),
        dtype=None,
        notices=(),
    )


def gguf_metadata_of(config: ModelConfig, *, name: str, file_type: int) -> dict[str, Any]:
    """The keys `general.*` and `llama.*` of a model. Errors: UsageError for what the format cannot say."""
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "general.file_type": file_type,
        "general.quantization_version": 2,
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_seq_len,
        "llama.embedding_length": config.dim,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        **_scaling_keys(config),
    }


def rope_divisors(config: ModelConfig) -> list[float] | None:
    """What rope_freqs.weight holds: plain frequency over scaled one for each pair; None where no such tensor is written."""
    if not isinstance(config.rope_scaling, Llama3Scaling):
        return None
    plain = [config.rope_theta ** (-2 * pair / config.head_dim) for pair in range(config.head_dim // 2)]
    scaled = config.rope_scaling.rescale(plain, config.rope_theta)
    return [before / after for before, after in zip(plain, scaled, strict=True)]


def _scaling_keys(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    match scaling:
        case NoScaling():
            return {}
        case LinearScaling():
            return {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": scaling.factor}
        case Llama3Scaling():
            implied = Llama3Scaling(factor=max(rope_divisors(config) or []))
            unsaid = {key: value for key, value in asdict(scaling).items() if value != getattr(implied, key)}
            return {f"puna.rope.{key}": value for key, value in unsaid.items()}
        case YarnScaling():
            plain = YarnScaling(factor=scaling.factor, original_max_seq_len=scaling.original_max_seq_len)
            if scaling != plain:
                raise UsageError("GGUF cannot say YaRN with its own attention_factor, betas or ramp", "convert to hf")
            return {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": scaling.factor,
                "llama.rope.scaling.original_context_length": scaling.original_max_seq_len,
            }


def _rope_scaling(record: JsonObject, file: GgufFile, model: ModelConfig) -> RopeScaling:
    kind = record.values.get("llama.rope.scaling.type", "none")
    divisors = next((tensor for tensor in file.tensors if tensor.name == ROPE_DIVISORS), None)
    for extra in _YARN_EXTRAS:
        if record.values.get(f"llama.rope.scaling.{extra}"):
            raise record.refuse(f"llama.rope.scaling.{extra}", "nothing", "only YaRN's default settings are read")
    if kind != "none" and divisors is not None:
        raise record.refuse("llama.rope.scaling.type", f"none beside {ROPE_DIVISORS}")
    if kind == "linear":
        return LinearScaling(factor=_number(record, "llama.rope.scaling.factor"))
    if kind == "yarn":
        return YarnScaling(
            factor=_number(record, "llama.rope.scaling.factor"),
            original_max_seq_len=record.integer("llama.rope.scaling.original_context_length"),
        )
    if kind != "none":
        raise record.refuse("llama.rope.scaling.type", "none, linear or yarn")
    return NoScaling() if divisors is None else _llama3(record, divisors, model)


def _llama3(record: JsonObject, tensor: TensorHeader, model: ModelConfig) -> RopeScaling:
    """The llama3 scaling that a tensor of divisors implies, if it gives these divisors again."""
    pairs = model.head_dim // 2
    if tensor.shape != (pairs,) or tensor.dtype != "F32":
        raise FormatError(record.path, ROPE_DIVISORS, f"{pairs} numbers of F32", f"{tensor.shape} of {tensor.dtype}")
    stored = _read_floats(record.path, tensor)
    if not all(math.isfinite(value) and value > 0 for value in stored):
        raise FormatError(record.path, ROPE_DIVISORS, "positive divisors", "zero, a negative number or NaN")
    scaling = Llama3Scaling(
        factor=_number(record, "puna.rope.factor", max(stored)),
        low_freq_factor=_number(record, "puna.rope.low_freq_factor", 1.0),
        high_freq_factor=_number(record, "puna.rope.high_freq_factor", 4.0),
        original_max_seq_len=record.integer("puna.rope.original_max_seq_len", 8192),
    )
    implied = rope_divisors(replace(model, rope_scaling=scaling)) or []
    if not all(math.isclose(a, b, rel_tol=_SAME) for a, b in zip(stored, implied, strict=True)):
        raise FormatError(record.path, ROPE_DIVISORS, "the divisors of llama3 scaling", "others")
    return scaling


def _read_floats(path: Path, tensor: TensorHeader) -> Sequence[float]:
    try:
        with path.open("rb") as file:
            file.seek(tensor.offset)
            return struct.unpack(f"<{tensor.bytes // 4}f", file.read(tensor.bytes))
    except (OSError, struct.error) as error:
        raise FormatError(path, tensor.name, f"{tensor.bytes} bytes", error) from None


def _head_dim(record: JsonObject, dim: int, heads: int) -> int:
    head_dim = record.integer("llama.attention.key_length", dim // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if record.integer(key, head_dim) != head_dim:
            raise record.refuse(key, f"{head_dim}, as the keys are wide")
    return head_dim


def _vocab_size(record: JsonObject, tensors: Sequence[TensorHeader]) -> int:
    """llama.vocab_size, else the embedding's rows, else the vocabulary's length: a file of a vocabulary alone has only that."""
    if "llama.vocab_size" in record.values:
        return record.integer("llama.vocab_size")
    rows = next((tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight"), None)
    return rows if rows is not None else max(1, len(record.items("tokenizer.ggml.tokens")))


def _number(record: JsonObject, key: str, default: float | None = None) -> float:
    """A number that is stored in float32, as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    value = record.number(key, default)
    short = float(f"{value:.7g}")
    return short if struct.pack("<d", value) == struct.pack("<d", _float32(short)) else value


def _float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf


def _token_id(record: JsonObject, key: str, vocab_size: int) -> int | None:
    if key not in record.values:
        return None
    token = record.integer(key, minimum=0)
    if token >= vocab_size:
        raise record.refuse(key, f"an id below {vocab_size}")
    return token
