"""The released models' numbers, checked by what they add up to: math.md section 3's published parameter counts."""

import pytest

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_shapes
from puna.arch.presets import PRESETS, find_preset
from puna.errors import UsageError

PARAMETERS = {
    "llama-1-7b": 6_738_415_616,
    "llama-1-33b": 32_528_943_616,
    "llama-1-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_released_model_has_its_published_number_of_parameters(name: str) -> None:
    assert _parameters(find_preset(name).config) == PARAMETERS[name]


def test_every_released_model_is_in_the_table() -> None:
    assert {name for name in PRESETS if name.startswith("llama")} == PARAMETERS.keys()
    assert all(preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize(("name", "factor"), [("llama-3.1-8b", 8.0), ("llama-3.2-1b", 32.0), ("llama-3.2-3b", 32.0)])
def test_the_long_context_models_scale_rope_as_released(name: str, factor: float) -> None:
    config = find_preset(name).config
    assert config.rope_scaling.kind == "llama3"
    assert config.rope_scaling.factor == factor
    assert (config.rope_theta, config.max_seq_len) == (500_000.0, 131_072)


def test_our_own_models_group_their_queries() -> None:
    for name in ("tiny", "small"):
        assert find_preset(name).config.heads_per_group > 1


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="'lama-3-8b'") as caught:
        find_preset("lama-3-8b")
    assert "did you mean 'llama-3-8b'" in caught.value.hint


def _parameters(config: ModelConfig) -> int:
    linears = sum(out * into for out, into in linear_shapes(config).values())
    tables = config.vocab_size * config.dim * (1 if config.tied_embeddings else 2)
    return config.n_layers * (linears + 2 * config.dim) + config.dim + tables
