"""config.json <-> ModelConfig: what we write we read, and what we do not compute is refused by its key."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from puna.arch.attention_pattern import Blocks, Hybrid, SlidingWindow
from puna.arch.presets import PRESETS
from puna.arch.rope_scaling import LinearScaling, Llama3Scaling, NoScaling
from puna.errors import FormatError
from puna.weights.config_json import config_from_json, config_to_json
from puna.weights.names import CorrectedEntry, FusedEntry, LowRankEntry, RoundedEntry
from puna.weights.strict_json import JsonObject
from tests.variants import OWN_VARIANTS, PLAIN_VARIANTS, VARIANTS

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LOW_RANK = LowRankEntry(path="layers.0.mlp.up_proj", rank=3)
FUSED = {"kind": "fused", "paths": ["layers.0.mlp.gate_proj", "layers.0.mlp.up_proj"], "rank": 3}


def read(values):
    return config_from_json(JsonObject(Path("config.json"), values))


@pytest.fixture
def plain(tiny_config):
    return config_to_json(tiny_config, bos_id=0, eos_ids=[1], dtype="float32")


@pytest.fixture
def factored(tiny_config):
    return config_to_json(tiny_config, bos_id=0, eos_ids=[1], dtype="float32", linears=[LOW_RANK], record={"keep": 0.5})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_read_back_equal(name):
    config = PRESETS[name].config
    stored = read(config_to_json(config, bos_id=1, eos_ids=[2, 3], dtype="bfloat16"))
    kind = "puna" if config.variants else "hf"
    assert (stored.model, stored.format, stored.bos_id, stored.eos_ids) == (config, kind, 1, (2, 3))
    assert (stored.dtype, stored.linears, stored.notices) == ("bfloat16", (), ())


@pytest.mark.parametrize("scaling", [NoScaling(), LinearScaling(factor=2.5), Llama3Scaling(factor=8.0)])
def test_each_form_of_the_rope_keys_says_it_alone(tiny_config, scaling):
    config = replace(tiny_config, rope_scaling=scaling, rope_theta=77_000.0)
    both = config_to_json(config, bos_id=None, eos_ids=[], dtype="float32")
    new = {key: value for key, value in both.items() if key not in ("rope_theta", "rope_scaling")}
    old = {key: value for key, value in both.items() if key != "rope_parameters"}
    assert read(both).model == read(new).model == read(old).model == config


def test_absent_keys_take_hugging_faces_defaults(plain, tiny_config):
    optional = ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "mlp_bias")
    rope, ids = ("rope_parameters", "rope_theta", "rope_scaling"), ("bos_token_id", "eos_token_id", "pad_token_id")
    stored = read({key: value for key, value in plain.items() if key not in (*optional, *rope, *ids, "hidden_act")})
    expected = replace(tiny_config, n_kv_heads=tiny_config.n_heads, norm_eps=1e-6, tied_embeddings=False)
    assert stored.model == expected
    assert (stored.bos_id, stored.eos_ids) == (None, ())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "mistral"),
        ("model_type", "puna"),
        ("architectures", ["MistralForCausalLM"]),
        ("hidden_act", "gelu_pytorch_tanh"),
        ("attention_bias", "yes"),
        ("mlp_bias", 1),
        ("sliding_window", 4096),
        ("quantization_config", {"bits": 4}),
        ("partial_rotary_factor", 0.5),
        ("hidden_size", "64"),
        ("hidden_size", 64.0),
        ("hidden_size", None),
        ("num_hidden_layers", True),
        ("num_key_value_heads", None),
        ("tie_word_embeddings", "yes"),
        ("bos_token_id", 512),
        ("eos_token_id", [1, -1]),
        ("eos_token_id", True),
        ("dtype", "float16"),
        ("dtype", 16),
        ("rope_theta", 5e5),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("puna", {}),
    ],
)
def test_what_we_do_not_compute_is_refused_by_its_key(plain, key, value):
    with pytest.raises(FormatError, match=key):
        read({**plain, key: value})


@pytest.mark.parametrize(("key", "value"), [("num_key_value_heads", 3), ("head_dim", 15), ("rms_norm_eps", 0)])
def test_numbers_that_are_no_llama_are_a_format_error(plain, key, value):
    with pytest.raises(FormatError, match="numbers of a Llama"):
        read({**plain, key: value})


def test_a_head_width_that_does_not_follow_is_required(plain):
    del plain["head_dim"]
    with pytest.raises(FormatError, match="head_dim"):
        read({**plain, "hidden_size": 63})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                 "num_attention_heads", "max_position_embeddings", "model_type", "architectures"])  # fmt: skip
def test_a_missing_key_is_named(plain, key):
    del plain[key]
    with pytest.raises(FormatError, match=f"{key}.*got nothing"):
        read(plain)


@pytest.mark.parametrize(
    ("rope", "reason"),
    [
        ({**LLAMA3, "rope_type": "longrope"}, "rope_type.*got 'longrope'"),
        ({**LLAMA3, "rope_type": "dynamic"}, "rope_type.*got 'dynamic'"),
        ({**LLAMA3, "rope_type": ["llama3"]}, "rope_type"),
        ({**LLAMA3, "type": "linear"}, "type: expected llama3"),
        ({**LLAMA3, "mscale": 1.0}, "mscale"),
        ({**LLAMA3, "factor": None}, "factor"),
        ({**LLAMA3, "factor": 0.5}, "factor"),
        ({key: value for key, value in LLAMA3.items() if key != "low_freq_factor"}, "low_freq_factor.*got nothing"),
        ({"factor": 2.0}, "type.*got nothing"),
        ("llama3", "an object"),
    ],
)
def test_rope_scaling_that_we_cannot_compute_is_refused(plain, rope, reason):
    old = {key: value for key, value in plain.items() if key != "rope_parameters"}
    with pytest.raises(FormatError, match=reason) as caught:
        read({**old, "rope_scaling": rope})
    assert "type.*got '" not in reason or "not computed" in caught.value.hint


def test_code_is_never_run_and_unknown_keys_are_said_once(plain):
    stored = read({**plain, "auto_map": {"AutoModel": "evil.py"}, "colour": 1, "size": 2, "transformers_version": "5"})
    assert len(stored.notices) == 2
    assert "auto_map" in stored.notices[0]
    assert stored.notices[1].endswith("colour, size")


def test_other_linears_are_listed_in_a_puna_section(factored):
    stored = read(factored)
    assert (stored.format, stored.linears) == ("puna", (LOW_RANK,))
    assert factored["puna"]["compression"] == {"keep": 0.5}
    int8 = {**factored, "puna": {**factored["puna"], "linears": [{"kind": "int8", "path": "layers.0.mlp.up_proj"}]}}
    assert read(int8).linears == (RoundedEntry(path="layers.0.mlp.up_proj", kind="int8"),)
    fused = {**factored, "puna": {**factored["puna"], "linears": [FUSED]}}
    assert read(fused).linears == (FusedEntry(paths=tuple(FUSED["paths"]), rank=3),)


@pytest.mark.parametrize(
    "entry",
    [
        LowRankEntry(path="layers.0.mlp.up_proj", rank=3, factors="q8_0"),
        FusedEntry(paths=tuple(FUSED["paths"]), rank=3, factors="nf4"),
        RoundedEntry(path="layers.0.mlp.up_proj", kind="q4_0"),
        CorrectedEntry(path="layers.0.mlp.up_proj", base="nf4", rank=16),
    ],
)
def test_few_bits_are_listed_and_read_again(tiny_config, entry):
    written = config_to_json(tiny_config, bos_id=0, eos_ids=[1], dtype="float32", linears=[entry])
    assert read(json.loads(json.dumps(written))).linears == (entry,)


@pytest.mark.parametrize(
    "pattern",
    [
        SlidingWindow(window=16, sinks=4),
        SlidingWindow(window=16, learnable_sink=True),
        Blocks(size=8, shifted=True),
        Hybrid(window=16, windows=3),
    ],
    ids=repr,
)
def test_who_attends_to_whom_is_said_and_read_again(tiny_config, pattern):
    config = replace(tiny_config, pattern=pattern)
    written = config_to_json(config, bos_id=0, eos_ids=[1], dtype="float32")
    assert (written["architectures"], written["model_type"]) == (["PunaForCausalLM"], "puna")
    stored = read(json.loads(json.dumps(written)))
    assert (stored.format, stored.model, stored.linears) == ("puna", config, ())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_said_and_read_again(tiny_config, name):
    config = replace(tiny_config, **VARIANTS[name])
    written = json.loads(json.dumps(config_to_json(config, bos_id=0, eos_ids=[1], dtype="float32")))
    assert written["model_type"] == ("llama" if name in PLAIN_VARIANTS else "puna")
    assert ("puna" in written) is (name in OWN_VARIANTS)
    assert read(written).model == config


@pytest.mark.parametrize("path", ["norm", "position", "layers.0.mlp.gate", "layers.0.self_attn.q_proj"])
def test_an_entry_for_what_is_no_linear_or_has_a_bias_is_refused(tiny_config, path):
    entry = LowRankEntry(path=path, rank=3)
    config = replace(tiny_config, attention_bias=True, norm="layer")
    written = config_to_json(config, bos_id=0, eos_ids=[1], dtype="float32", linears=[entry])
    with pytest.raises(FormatError, match=f"Linears without a bias, got {path}"):
        read(json.loads(json.dumps(written)))


def test_a_function_that_contradicts_its_network_is_refused(tiny_config):
    written = config_to_json(replace(tiny_config, ffn="relu"), bos_id=0, eos_ids=[1], dtype="float32")
    with pytest.raises(FormatError, match="hidden_act: expected relu, the function of relu"):
        read({**written, "hidden_act": "silu"})


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ({"kind": "sideways"}, "attention.kind: expected causal or sliding_window"),
        ({"kind": "blocks", "size": 8}, "attention.shifted"),
        ({"kind": "blocks", "size": 0, "shifted": False}, "size: expected at least 1, got 0"),
        ({"kind": "blocks", "size": True, "shifted": False}, "attention.size"),
        ({"kind": "causal", "window": 8}, "attention.window: expected nothing"),
    ],
)
def test_attention_that_is_no_pattern_is_refused(factored, attention, said):
    with pytest.raises(FormatError, match=said):
        read({**factored, "puna": {**factored["puna"], "attention": attention}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 2),
        ("norm", {"kind": "group"}),
        ("norm", None),
        ("ffn", {"kind": "swiglu", "more": 1}),
        ("colour", 1),
        ("linears", {}),
        ("linears", ["layers.0.mlp.up_proj"]),
        ("linears", [{"kind": "nf3", "path": "layers.0.mlp.up_proj"}]),
        ("factors", [{**FUSED, "factors": "nf3"}]),
        ("base", [{"kind": "corrected", "path": "layers.0.mlp.up_proj", "base": "low_rank", "rank": 3}]),
        ("linears", [{"kind": "low_rank", "path": "layers.0.mlp.up_proj"}]),
        ("linears", [{"kind": "low_rank", "path": 3, "rank": 1}]),
        ("linears", [{"kind": "int8", "path": "a", "rank": 1}]),
        ("linears", [{"kind": "int8", "path": "a"}, {"kind": "int8", "path": "a"}]),
        ("linears", [{**FUSED, "paths": "layers.0.mlp.gate_proj"}]),
        ("linears", [{**FUSED, "paths": [3, 4]}]),
        ("linears", [{**FUSED, "paths": FUSED["paths"][:1]}]),
        ("linears", [{**FUSED, "paths": FUSED["paths"][::-1]}]),
        ("linears", [{**FUSED, "paths": [*FUSED["paths"], "layers.0.mlp.up_proj"]}]),
        ("linears", [{**FUSED, "paths": ["layers.0.mlp.gate_proj", "layers.1.mlp.up_proj"]}]),
        ("linears", [{**FUSED, "paths": ["layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj"]}]),
        ("linears", [{**FUSED, "rank": 0}]),
        ("linears", [{**FUSED, "path": "layers.0.mlp.gate_proj"}]),
        ("linears", [FUSED, {"kind": "int8", "path": "layers.0.mlp.up_proj"}]),
    ],
)
def test_an_unknown_kind_or_schema_is_refused(factored, key, value):
    with pytest.raises(FormatError, match=key):
        read({**factored, "puna": {**factored["puna"], "linears" if isinstance(value, list) else key: value}})
