"""config.json <-> ModelConfig: Hugging Face's keys for a Llama, and a `puna` section for what LlamaForCausalLM is not.

What would change the numbers and is not computed here is refused by name.
Format: docs/formats.md 1.1 and 7; oracle: transformers 5.23.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from puna.arch.config import ModelConfig
from puna.arch.modules import HEAD, linear_shapes, read_one_input
from puna.arch.rope_scaling import NoScaling
from puna.arch.rounding import ROUNDINGS, Rounding
from puna.arch.variants import FEED_FORWARDS
from puna.errors import FormatError, UsageError
from puna.weights.checkpoint import CheckpointConfig
from puna.weights.names import CorrectedEntry, FusedEntry, LinearEntry, LowRankEntry, RoundedEntry
from puna.weights.rope_json import read_rope_scaling, read_rope_theta, rope_to_json
from puna.weights.strict_json import JsonObject
from puna.weights.variants_json import PARTS, parts_to_json, plain_keys, read_parts, read_plain_keys

__all__ = ["config_from_json", "config_to_json", "token_ids"]

_CLASSES = {"llama": "LlamaForCausalLM", "puna": "PunaForCausalLM"}
_REFUSED = {  # key -> the way out, where there is one
    "sliding_window": "",
    "quantization_config": "take the checkpoint that this one was quantised from, then: puna compress MODEL OUT --quantize",
    "partial_rotary_factor": "",
    "original_max_position_embeddings": "",
}
_KNOWN = {
    *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"),
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "initializer_range", "hidden_act", "rope_parameters"),
    *("rope_theta", "rope_scaling", "dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("attention_dropout", "use_cache", "pretraining_tp", "auto_map", "puna", *_REFUSED),
    *("transformers_version", "_name_or_path", "return_dict", "output_attentions", "output_hidden_states"),
}


def config_to_json(
    config: ModelConfig,
    *,
    bos_id: int | None,
    eos_ids: Sequence[int],
    dtype: str,
    linears: Sequence[LinearEntry] = (),
    embedding_rank: int | None = None,
    record: Mapping[str, object] | None = None,
    pad_id: int | None = None,
) -> dict[str, Any]:
    """The config.json of a model. `record` says where a compressed one came from; a plain Llama's has no place for it."""
    kind = "puna" if linears or embedding_rank is not None or config.variants else "llama"
    rope = rope_to_json(config.rope_scaling)
    return {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "rope_scaling": None if isinstance(config.rope_scaling, NoScaling) else rope,
        "tie_word_embeddings": config.tied_embeddings,
        **plain_keys(config),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": bos_id,
        "eos_token_id": list(eos_ids) if len(eos_ids) > 1 else next(iter(eos_ids), None),
        "pad_token_id": pad_id,
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
        "pretraining_tp": 1,
    } | ({"puna": _puna_section(config, linears, embedding_rank, record)} if kind == "puna" else {})


def config_from_json(record: JsonObject) -> CheckpointConfig:
    """Read the object of a config.json. Errors: FormatError naming the key."""
    kind = record.one_of("model_type", _CLASSES, expected="llama", hint="only models of the Llama family are read")
    if record.values.get("architectures") != [_CLASSES[kind]]:
        raise record.refuse("architectures", f'["{_CLASSES[kind]}"], as model_type says')
    _refuse_what_we_lack(record)
    linears, embedding_rank, compression = _read_puna_section(record, kind)
    model = _model_config(record, kind)
    _check_linears(record, model, linears)
    return CheckpointConfig(
        format="puna" if kind == "puna" else "hf",
        model=model,
        linears=linears,
        bos_id=next(iter(token_ids(record, "bos_token_id", model.vocab_size)), None),
        eos_ids=token_ids(record, "eos_token_id", model.vocab_size),
        dtype=_dtype(record),
        notices=_notices(record),
        pad_id=_pad_id(record, model.vocab_size),
        compression=compression,
        embedding_rank=embedding_rank,
    )


def _pad_id(record: JsonObject, vocab_size: int) -> int | None:
    """None also for -1, Hugging Face's old word for none. Errors: FormatError."""
    if record.values.get("pad_token_id") == -1:
        return None
    return next(iter(token_ids(record, "pad_token_id", vocab_size)), None)


def token_ids(record: JsonObject, key: str, vocab_size: int) -> tuple[int, ...]:
    """The ids under a key that may hold one, a list of them, null or nothing."""
    value = record.values.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and 0 <= token < vocab_size for token in ids):
        raise record.refuse(key, f"ids below the vocabulary's size {vocab_size}")
    return tuple(ids)


def _model_config(record: JsonObject, kind: str) -> ModelConfig:
    parts = read_plain_keys(record) if kind == "llama" else _own_parts(record)
    dim, heads = record.integer("hidden_size"), record.integer("num_attention_heads")
    if "head_dim" not in record.values and dim % heads:
        raise record.refuse("head_dim", f"a width, since {heads} heads do not divide {dim}")
    try:
        return ModelConfig(
            vocab_size=record.integer("vocab_size"),
            dim=dim,
            n_layers=record.integer("num_hidden_layers"),
            n_heads=heads,
            n_kv_heads=record.integer("num_key_value_heads", heads),
            head_dim=record.integer("head_dim", dim // heads),
            ffn_dim=record.integer("intermediate_size"),
            max_seq_len=record.integer("max_position_embeddings"),
            rope_theta=read_rope_theta(record),
            rope_scaling=read_rope_scaling(record),
            norm_eps=record.number("rms_norm_eps", 1e-6),
            tied_embeddings=record.flag("tie_word_embeddings", default=False),
            **parts,
        )
    except UsageError as error:
        raise FormatError(record.path, "config", "the numbers of a Llama", error.message, error.hint) from None


def _own_parts(record: JsonObject) -> dict[str, Any]:
    """Of a model of our own, whose function of the feed-forward network two keys name."""
    parts = read_parts(record.child("puna"))
    biases = {key: record.flag(key, default=False) for key in ("attention_bias", "mlp_bias")}
    if record.values.get("hidden_act", "silu") != FEED_FORWARDS[parts["ffn"]]:
        raise record.refuse("hidden_act", f"{FEED_FORWARDS[parts['ffn']]}, the function of {parts['ffn']}")
    return {**parts, **biases}


def _refuse_what_we_lack(record: JsonObject) -> None:
    for key, way_out in _REFUSED.items():
        if record.values.get(key) is not None:
            raise record.refuse(key, "null or nothing", way_out or f"models with {key} are not supported")


def _dtype(record: JsonObject) -> str | None:
    found = [record.values[key] for key in ("dtype", "torch_dtype") if key in record.values]
    if not all(value is None or isinstance(value, str) for value in found):
        raise record.refuse("dtype", "the name of a type")
    if any(value != found[0] for value in found):
        raise record.refuse("dtype", f"the same as torch_dtype, {found[1]!r}")
    return found[0] if found else None


def _notices(record: JsonObject) -> tuple[str, ...]:
    unknown = sorted(record.values.keys() - _KNOWN)
    notices = []
    if "auto_map" in record.values:
        notices.append(f"{record.path}: auto_map is ignored: no code from a checkpoint is ever run")
    if unknown:
        notices.append(f"{record.path}: keys without a meaning here are ignored: {', '.join(unknown[:20])}")
    return tuple(notices)


def _puna_section(
    config: ModelConfig,
    linears: Sequence[LinearEntry],
    embedding_rank: int | None,
    record: Mapping[str, object] | None,
) -> dict[str, Any]:
    parts = parts_to_json(config)
    parts["embedding"] = {"kind": "dense"} if embedding_rank is None else {"kind": "pca", "rank": embedding_rank}
    origin = {} if record is None else {"compression": dict(record)}
    return {"schema": 1, **parts, "linears": [_written(entry) for entry in linears], **origin}


def _written(entry: LinearEntry) -> dict[str, Any]:
    """An entry as it stands in the file; what is None is left out."""
    return {key: value for key, value in asdict(entry).items() if value is not None}


def _read_puna_section(
    record: JsonObject, kind: str
) -> tuple[tuple[LinearEntry, ...], int | None, Mapping[str, Any] | None]:
    """What is not dense, the rank of a factored input table, and where the model came from."""
    if kind == "llama":
        if "puna" in record.values:
            raise record.refuse("puna", "nothing: a plain Llama has no such section")
        return (), None, None
    section = record.child("puna")
    section.only("schema", *PARTS, "embedding", "linears", "compression")
    if section.integer("schema") != 1:
        raise section.refuse("schema", "1", "written by a newer version?")
    entries = [_read_entry(section.nested("linears", value)) for value in section.items("linears")]
    paths = [path for entry in entries for path in entry.paths]
    if len(set(paths)) < len(paths):
        raise section.refuse("linears", "each path once")
    compression = section.child("compression").values if "compression" in section.values else None
    return tuple(entries), _embedding_rank(section.child("embedding")), compression


def _check_linears(record: JsonObject, model: ModelConfig, linears: Sequence[LinearEntry]) -> None:
    """Errors: FormatError: an entry that names no Linear of this model, or one with a bias, which only a dense one has."""
    known = {*linear_shapes(model), HEAD}
    for path in (path for entry in linears for path in entry.paths):
        name = path.rpartition(".")[2]
        if name not in known or model.is_biased(name):
            raise record.child("puna").refuse("linears", f"paths of this model's Linears without a bias, got {path}")


def _embedding_rank(embedding: JsonObject) -> int | None:
    if embedding.one_of("kind", ("dense", "pca"), expected="dense or pca") == "dense":
        embedding.only("kind")
        return None
    embedding.only("kind", "rank")
    return embedding.integer("rank")


def _read_entry(entry: JsonObject) -> LinearEntry:
    known = ("low_rank", "fused", "corrected", *ROUNDINGS)
    kind = entry.one_of("kind", known, expected=", ".join(known))
    if kind == "fused":
        entry.only("kind", "paths", "rank", "factors")
        paths = entry.items("paths")
        if not (all(isinstance(path, str) for path in paths) and read_one_input(paths)):
            raise entry.refuse("paths", "two or more Linears of one layer that read the same input, in their order")
        return FusedEntry(paths=tuple(paths), rank=entry.integer("rank"), factors=_factors(entry))
    path = entry.values.get("path")
    if not isinstance(path, str):
        raise entry.refuse("path", "the path of a Linear")
    if kind == "low_rank":
        entry.only("kind", "path", "rank", "factors")
        return LowRankEntry(path=path, rank=entry.integer("rank"), factors=_factors(entry))
    if kind == "corrected":
        entry.only("kind", "path", "base", "rank")
        return CorrectedEntry(path=path, base=_rounding(entry, "base"), rank=entry.integer("rank"))
    entry.only("kind", "path")
    return RoundedEntry(path=path, kind=_rounding(entry, "kind"))


def _factors(entry: JsonObject) -> Rounding | None:
    """How factors are stored; None: dense."""
    return _rounding(entry, "factors") if "factors" in entry.values else None


def _rounding(entry: JsonObject, key: str) -> Rounding:
    name = entry.one_of(key, ROUNDINGS, expected=", ".join(ROUNDINGS))
    return next(rounding for rounding in ROUNDINGS if rounding == name)
