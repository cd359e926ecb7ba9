"""The name table against the model itself."""

from dataclasses import replace
from itertools import islice

import pytest

from puna.arch.modules import parameter_count
from puna.weights.names import FusedEntry, LowRankEntry, RoundedEntry, expected_tensors, from_hf, to_hf

PATH = "layers.1.self_attn.k_proj"


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": False}, {"head_dim": 24, "n_kv_heads": 1}])
def test_the_table_lists_exactly_the_models_parameters(build_llama, changes):
    model = build_llama(**changes)
    expected = {tensor.path: tensor.shape for tensor in expected_tensors(model.config, kind="hf")}
    assert expected == {path: tuple(weight.shape) for path, weight in model.named_parameters()}
    assert parameter_count(model.config) == sum(weight.numel() for weight in model.parameters())


def test_names_and_paths_are_inverses(tiny_config):
    for tensor in expected_tensors(tiny_config, kind="hf"):
        assert tensor.name == to_hf(tensor.path)
        assert from_hf(tensor.name) == tensor.path
    assert to_hf("lm_head.weight") == "lm_head.weight"


def test_other_linears_stand_under_their_path_and_the_puna_prefix(tiny_config):
    entries = (LowRankEntry(path=PATH, rank=5), RoundedEntry(path="layers.0.mlp.up_proj", kind="int8"))
    found = {tensor.name: tensor for tensor in expected_tensors(tiny_config, entries, kind="puna")}
    assert all(name.startswith("puna.") for name in found)
    assert found[f"puna.{PATH}.U"].shape == (32, 5)
    assert found[f"puna.{PATH}.V"].shape == (5, 64)
    assert f"puna.{PATH}.weight" not in found
    assert found["puna.layers.0.mlp.up_proj.weight"].dtypes == {"I8"}
    assert not found["puna.layers.0.mlp.up_proj.scale"].is_converted


def test_a_shared_factor_stands_under_the_first_path_alone(tiny_config):
    paths = tuple(f"layers.1.self_attn.{name}_proj" for name in "qkv")
    found = {
        tensor.path: tensor.shape
        for tensor in expected_tensors(tiny_config, [FusedEntry(paths=paths, rank=5)], kind="puna")
        if tensor.path.startswith("layers.1.self_attn")
    }
    heights = tiny_config.q_dim, tiny_config.kv_dim, tiny_config.kv_dim
    expected = {f"{path}.U": (height, 5) for path, height in zip(paths, heights, strict=True)}
    expected |= {f"{paths[0]}.V": (5, 64), "layers.1.self_attn.o_proj.weight": (64, 64)}
    assert found == expected


def test_a_false_number_of_layers_costs_nothing(tiny_config):
    huge = replace(tiny_config, n_layers=10**15)
    assert len(list(islice(expected_tensors(huge, kind="hf"), 50))) == 50
    assert parameter_count(huge) > 10**15
