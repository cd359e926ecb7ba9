"""RoPE in a config.json: `rope_parameters` (new), and `rope_theta` with `rope_scaling` (old); where both stand they agree.

Format: docs/formats.md 1.1; oracle: transformers 5.23, which takes one of two that disagree: we refuse them.
"""

from dataclasses import replace
from typing import Any

from puna.arch.rope_scaling import LinearScaling, Llama3Scaling, NoScaling, RopeScaling, YarnScaling
from puna.errors import UsageError
from puna.weights.strict_json import JsonObject

__all__ = ["read_rope_scaling", "read_rope_theta", "rope_to_json"]

_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
}


def read_rope_theta(record: JsonObject) -> float:
    """RoPE's base from every place where one may stand; they must agree. Absent: 10000, Hugging Face's default."""
    places = [record, *_rope_objects(record)]
    found = {place.prefix: place.number("rope_theta") for place in places if "rope_theta" in place.values}
    if len(set(found.values())) > 1:
        raise record.refuse("rope_theta", f"one value in all of {sorted(found)}", "the old and the new keys disagree")
    return next(iter(found.values()), 10_000.0)


def read_rope_scaling(record: JsonObject) -> RopeScaling:
    """The scaling that both forms say, or the one that stands. Errors: FormatError where they disagree."""
    found = [_read_scaling(place) for place in _rope_objects(record)]
    if "rope_scaling" in record.values and record.values["rope_scaling"] is None:
        found.append(NoScaling())
    if any(scaling != found[0] for scaling in found):
        raise record.refuse("rope_scaling", "the same as rope_parameters", "the old and the new keys disagree")
    return found[0] if found else NoScaling()


def rope_to_json(scaling: RopeScaling) -> dict[str, Any]:
    """The object without rope_theta. Errors: UsageError for YaRN with the paper's ramp, which has no word for it."""
    match scaling:
        case NoScaling():
            return {"rope_type": "default"}
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_seq_len,
            }
        case YarnScaling():
            return _yarn_to_json(scaling)


def _rope_objects(record: JsonObject) -> list[JsonObject]:
    is_scaled = record.values.get("rope_scaling") is not None
    present = [("rope_parameters", "rope_parameters" in record.values), ("rope_scaling", is_scaled)]
    return [record.child(key) for key, is_present in present if is_present]


def _read_scaling(rope: JsonObject) -> RopeScaling:
    key = "rope_type" if "rope_type" in rope.values else "type"
    kind = rope.one_of(
        key, _ROPE_KEYS, expected=f"one of {', '.join(_ROPE_KEYS)}", hint="other kinds of RoPE scaling are not computed"
    )
    if rope.values.get("type", kind) != kind:
        raise rope.refuse("type", f"{kind}, as rope_type says")
    rope.only("rope_type", "type", "rope_theta", *_ROPE_KEYS[kind])
    if kind == "default":
        return NoScaling()
    if kind == "linear":
        return LinearScaling(factor=rope.number("factor"))
    if kind == "yarn":
        return _read_yarn(rope)
    return Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_seq_len=rope.integer("original_max_position_embeddings"),
    )


def _read_yarn(rope: JsonObject) -> YarnScaling:
    """An attention_factor that is the default one is kept as such, so that what is written again says the same."""
    explicit = rope.number("attention_factor") if rope.values.get("attention_factor") is not None else None
    scaling = YarnScaling(
        factor=rope.number("factor"),
        original_max_seq_len=rope.integer("original_max_position_embeddings"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
    )
    return scaling if explicit in (None, scaling.amplitude) else replace(scaling, attention_factor=explicit)


def _yarn_to_json(scaling: YarnScaling) -> dict[str, Any]:
    if scaling.ramp != "index":
        raise UsageError(
            "rope_scaling: config.json cannot say YaRN with the paper's ramp",
            "Hugging Face's YaRN ramps over the pairs' index: ramp = 'index'",
        )
    optional = {
        "attention_factor": (scaling.attention_factor, None),
        "beta_fast": (scaling.beta_fast, 32.0),
        "beta_slow": (scaling.beta_slow, 1.0),
    }
    chosen = {key: value for key, (value, default) in optional.items() if value != default}
    needed = {"factor": scaling.factor, "original_max_position_embeddings": scaling.original_max_seq_len}
    return {"rope_type": "yarn", **needed, **chosen}
