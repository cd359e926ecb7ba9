"""params.json: the released models' numbers in, the same numbers out."""

from pathlib import Path

import pytest

from puna.arch.presets import find_preset
from puna.errors import FormatError
from puna.weights.meta import MetaSettings, meta_config, meta_params
from puna.weights.strict_json import JsonObject

RELEASED = {  # as Meta's own params.json files have it
    "llama-1-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06},
    "llama-2-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05},
    "llama-2-70b": {
        "dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80,
        "norm_eps": 1e-05,
    },
    "llama-3-8b": {
        "dim": 4096, "ffn_dim_multiplier": 1.3, "multiple_of": 1024, "n_heads": 32, "n_kv_heads": 8, "n_layers": 32,
        "norm_eps": 1e-05, "rope_theta": 500000.0,
    },
    "llama-3.1-8b": {
        "dim": 4096, "ffn_dim_multiplier": 1.3, "multiple_of": 1024, "n_heads": 32, "n_kv_heads": 8, "n_layers": 32,
        "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True,
    },
    "llama-3.2-1b": {
        "dim": 2048, "ffn_dim_multiplier": 1.5, "multiple_of": 256, "n_heads": 32, "n_kv_heads": 8, "n_layers": 16,
        "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True,
    },
}  # fmt: skip


def read(params, *, is_tied=False, **settings):
    return meta_config(JsonObject(Path("params.json"), params), (), MetaSettings(**settings), is_tied=is_tied)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_model_is_read_as_its_preset_says(name):
    config = find_preset(name).config
    params = RELEASED[name] | {"vocab_size": config.vocab_size}
    written = meta_params(config)  # its rule for the width may be another released model's
    for said in (params, written):
        assert read(said, is_tied=config.tied_embeddings, meta_max_seq_len=config.max_seq_len).model == config
    assert params.items() - written.items() <= {("ffn_dim_multiplier", 1.5), ("multiple_of", 256)}


def test_what_the_format_does_not_store_is_asked_for_or_told():
    with pytest.raises(FormatError, match=r"context.*rope_theta of Llama 1 or 2"):
        read(RELEASED["llama-2-7b"] | {"vocab_size": 32000})
    stored = read(RELEASED["llama-3.1-8b"] | {"vocab_size": 128256})
    assert (stored.model.rope_scaling.factor, stored.model.max_seq_len) == (8.0, 131_072)
    assert "8 taken, as in Llama 3.1" in stored.notices[0]
    assert read(RELEASED["llama-3.2-1b"] | {"vocab_size": 128256}).model.rope_scaling.factor == 32.0
    assert read(RELEASED["llama-3-8b"] | {"vocab_size": 128256}).model.max_seq_len == 8192


@pytest.mark.parametrize("wrong", [{"vision_chunk_size": 4}, {"lora_args": {"rank": 16}}, {"n_heads": 3}, {"dim": 0}])
def test_another_kind_of_checkpoint_is_refused_by_name(wrong):
    with pytest.raises(FormatError, match=next(iter(wrong))):
        read(RELEASED["llama-3-8b"] | {"vocab_size": 128256} | wrong)
