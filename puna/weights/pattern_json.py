"""The `attention` of a config.json's `puna` section: a tagged union, {"kind": "sliding_window", "window": 256, "sinks": 4, ...}.

Every field of its kind must be there, and no other. Format: docs/formats.md 7.
"""

from dataclasses import fields
from typing import Any

from puna.arch.attention_pattern import AttentionPattern, Blocks, Causal, Hybrid, SlidingWindow
from puna.errors import FormatError, UsageError
from puna.weights.strict_json import JsonObject

__all__ = ["read_pattern"]

_PATTERNS: dict[str, type[AttentionPattern]] = {
    "causal": Causal,
    "sliding_window": SlidingWindow,
    "blocks": Blocks,
    "hybrid": Hybrid,
}


def read_pattern(attention: JsonObject) -> AttentionPattern:
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
