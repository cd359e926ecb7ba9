"""The parts of a model in a config.json's `puna` section, tagged unions: {"norm": {"kind": "layer"}, "attention": {"kind":
"sliding_window", "window": 256, ...}, ...}; and what of them a plain Llama's own keys say.

Every field of its kind must be there, and no other. Format: docs/formats.md 7.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_args

from puna.arch.attention_pattern import AttentionPattern, Blocks, Causal, Hybrid, SlidingWindow
from puna.arch.config import ModelConfig
from puna.arch.variants import (
    FEED_FORWARDS,
    GATED,
    FeedForwardKind,
    NormKind,
    Placement,
    PositionKind,
    ScoreScale,
)
from puna.errors import FormatError, UsageError
from puna.weights.strict_json import JsonObject

__all__ = ["PARTS", "parts_to_json", "plain_keys", "read_parts", "read_plain_keys"]

_PATTERNS: dict[str, type[AttentionPattern]] = {
    "causal": Causal,
    "sliding_window": SlidingWindow,
    "blocks": Blocks,
    "hybrid": Hybrid,
}
_KINDS: Mapping[str, tuple[str, ...]] = {  # of those parts that are a word: the field of ModelConfig and its choices
    "norm": get_args(NormKind),
    "norm_placement": get_args(Placement),
    "position": get_args(PositionKind),
    "ffn": get_args(FeedForwardKind),
}
_LATER: Mapping[str, tuple[str, ...]] = {"score_scale": get_args(ScoreScale), "head": ("plain", "biased")}
PARTS = (*_KINDS, *_LATER, "attention")
"""The keys that `read_parts` reads; score_scale and head may be missing."""


def parts_to_json(config: ModelConfig) -> dict[str, Any]:
    """The parts of a model for the `puna` section."""
    parts: dict[str, Any] = {part: {"kind": getattr(config, part)} for part in _KINDS}
    if config.score_scale != "1/sqrt":
        parts["score_scale"] = {"kind": config.score_scale}
    if config.head_bias:
        parts["head"] = {"kind": "biased"}
    return parts | {"attention": asdict(config.pattern)}


def read_parts(section: JsonObject) -> dict[str, Any]:
    """Fields of ModelConfig. Errors: FormatError naming the key."""
    later = {part: kinds for part, kinds in _LATER.items() if part in section.values}
    found = {part: _kind(section, part, kinds) for part, kinds in (*_KINDS.items(), *later.items())}
    is_biased = found.pop("head", "plain") == "biased"
    return {**found, "head_bias": is_biased, "pattern": _read_pattern(section.child("attention"))}


def plain_keys(config: ModelConfig) -> dict[str, Any]:
    """What Hugging Face's own keys say of a model's parts."""
    act, biases = FEED_FORWARDS[config.ffn], {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    return {"hidden_act": act, **biases}


def read_plain_keys(record: JsonObject) -> dict[str, Any]:
    """Fields of ModelConfig of a plain Llama. Errors: FormatError naming the key."""
    kinds = {act: kind for kind, act in GATED.items()}
    act = record.values.get("hidden_act", "silu")
    if not isinstance(act, str) or act not in kinds:
        raise record.refuse("hidden_act", " or ".join(kinds), "other gates are not supported")
    biases = {key: record.flag(key, default=False) for key in ("attention_bias", "mlp_bias")}
    return {"ffn": kinds[act], **biases}


def _kind(section: JsonObject, part: str, kinds: tuple[str, ...]) -> str:
    variant = section.child(part)
    variant.only("kind")
    return variant.one_of("kind", kinds, expected=" or ".join(kinds))


def _read_pattern(attention: JsonObject) -> AttentionPattern:
    """Who attends to whom. Errors: FormatError naming the key."""
    pattern = _PATTERNS[attention.one_of("kind", _PATTERNS, expected=" or ".join(_PATTERNS))]
    known = {item.name: item for item in fields(pattern)}
    attention.only(*known)
    values: dict[str, Any] = {}
    for name in known.keys() - {"kind"}:
        if name not in attention.values:
            raise attention.refuse(name, "a value")
        is_flag = type(known[name].default) is bool
        values[name] = attention.flag(name, default=False) if is_flag else attention.integer(name, minimum=0)
    try:
        return pattern(**values)
    except UsageError as error:
        raise FormatError(attention.path, "puna.attention", "a pattern", error.message, error.hint) from None
