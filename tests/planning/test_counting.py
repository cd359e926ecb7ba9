import math
from dataclasses import replace

import pytest

from puna.arch.attention_pattern import Causal, Hybrid
from puna.arch.presets import PRESETS
from puna.model.llama import Llama
from puna.planning.compute import forward_flops
from puna.planning.counting import (
    embedding_parameters,
    group_parameters,
    head_parameters,
    kv_cache_bytes_per_token,
    linear_parameters,
    lora_parameters,
    lora_per_module,
    norm_parameters,
    parameter_count,
    parameter_shapes,
)
from puna.planning.memory import weight_bytes
from tests.variants import VARIANTS

# parameters, LoRA r = 16 on all Linears, LoRA r = 8 on q and v, cache bytes per token, forward GFLOP at 2048 tokens
REFERENCE = {
    "llama-2-7b": (6_738_415_616, 39_976_960, 4_194_304, 524_288, 13.75),
    "llama-1-7b": (6_738_415_616, 39_976_960, 4_194_304, 524_288, 13.75),
    "llama-2-13b": (13_015_864_320, 62_586_880, 6_553_600, 819_200, 26.54),
    "llama-1-33b": (32_528_943_616, 121_896_960, 12_779_520, 1_597_440, 66.27),
    "llama-1-65b": (65_285_660_672, 199_884_800, 20_971_520, 2_621_440, 132.73),
    "llama-2-70b": (68_976_648_192, 207_093_760, 16_384_000, 327_680, 140.11),
    "llama-3-8b": (8_030_261_248, 41_943_040, 3_407_872, 131_072, 15.55),
    "llama-3.1-8b": (8_030_261_248, 41_943_040, 3_407_872, 131_072, 15.55),
    "llama-3.2-1b": (1_235_814_400, 11_272_192, 851_968, 32_768, 2.61),
    "llama-3.2-3b": (3_212_749_824, 24_313_856, 2_293_760, 114_688, 6.78),
    "llama-3-70b": (70_553_706_496, 207_093_760, 16_384_000, 327_680, 141.69),
    "llama-3.1-70b": (70_553_706_496, 207_093_760, 16_384_000, 327_680, 141.69),
    "llama-3.1-405b": (405_853_388_800, 623_443_968, 50_577_408, 516_096, 815.96),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_counts_equal_the_reference_table(name):
    config = PRESETS[name].config
    counts = (
        parameter_count(config),
        lora_parameters(config, 16),
        lora_parameters(config, 8, ("q_proj", "v_proj")),
        kv_cache_bytes_per_token(config),
    )
    assert counts == REFERENCE[name][:4]
    assert round(forward_flops(config, 2048).total / 2048 / 1e9, 2) == REFERENCE[name][4]


@pytest.mark.parametrize("name", PRESETS)
def test_the_sum_over_tensors_equals_the_formula(name):
    config = PRESETS[name].config
    assert sum(math.prod(shape) for shape in parameter_shapes(config).values()) == parameter_count(config)


@pytest.mark.parametrize("pattern", [Causal(), Hybrid(window=8, windows=1, learnable_sink=True)], ids=repr)
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_every_name_and_shape_is_the_real_models(name, pattern):
    model = Llama(replace(PRESETS[name].config, pattern=pattern))
    assert {key: tuple(weight.shape) for key, weight in model.named_parameters()} == parameter_shapes(model.config)
    assert sum(weight.numel() for weight in model.parameters()) == parameter_count(model.config)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_parameters_of_a_variant_are_the_real_models(name):
    config = replace(PRESETS["tiny"].config, **VARIANTS[name])
    model = Llama(config)
    assert {key: tuple(weight.shape) for key, weight in model.named_parameters()} == parameter_shapes(config)
    parts = embedding_parameters(config), linear_parameters(config), norm_parameters(config), head_parameters(config)
    assert sum(weight.numel() for weight in model.parameters()) == parameter_count(config) == sum(parts)
    for base, bytes_each in (("float32", 4), ("bfloat16", 2)):
        assert weight_bytes(config, base) == bytes_each * parameter_count(config)
    groups = (group_parameters(config, group) for group in ("attention", "mlp"))
    assert config.n_layers * sum(groups) == linear_parameters(config)


def test_the_parts_of_8b_are_the_known_ones():
    config = PRESETS["llama-3-8b"].config
    assert linear_parameters(config) == 6_979_321_856 == 32 * 218_103_808
    assert embedding_parameters(config) == head_parameters(config) == 525_336_576
    assert norm_parameters(config) == 65 * 4096
    assert lora_parameters(config, 16, ("q_proj", "v_proj")) == 6_815_744
    modules = {"q_proj": 131_072, "k_proj": 81_920, "v_proj": 81_920, "o_proj": 131_072}
    assert lora_per_module(config, 16) == modules | dict.fromkeys(("gate_proj", "up_proj", "down_proj"), 294_912)


def test_a_tied_head_is_counted_once():
    config = PRESETS["llama-3.2-1b"].config
    assert head_parameters(config) == 0
    assert embedding_parameters(config) / parameter_count(config) == pytest.approx(0.213, abs=5e-4)


def test_the_cache_of_8b_is_one_gib_at_8192_tokens():
    per_token = kv_cache_bytes_per_token(PRESETS["llama-3-8b"].config)
    assert per_token * 8192 == 2**30
    assert per_token * 131_072 == 16 * 2**30


def test_the_example_of_grouped_queries_caches_a_quarter():
    config = PRESETS["transformer-2017"].config
    assert kv_cache_bytes_per_token(config) == config.n_layers * 2048
    assert kv_cache_bytes_per_token(replace(config, n_kv_heads=2)) == config.n_layers * 512
