"""Names, paths and shapes of the Linears are those of the model that is built."""

import pytest

from puna.arch.modules import (
    LINEAR_GROUPS,
    LINEARS,
    linear_path,
    linear_paths,
    linear_shapes,
    match_linears,
    shares_input,
)
from puna.errors import UsageError
from puna.model.llama import Llama


def test_every_path_and_shape_is_the_built_models(tiny: Llama) -> None:
    shapes = linear_shapes(tiny.config)
    for path in linear_paths(tiny.config):
        assert tuple(tiny.get_submodule(path).weight.shape) == shapes[path.rpartition(".")[2]], path
    assert len(list(linear_paths(tiny.config))) == len(LINEARS) * tiny.config.n_layers


def test_a_path_names_its_layer_and_its_parent() -> None:
    assert linear_path(3, "q_proj") == "layers.3.self_attn.q_proj"
    assert linear_path(0, "up_proj") == "layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", LINEARS),
        ("attention", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("mlp", ("gate_proj", "up_proj", "down_proj")),
        ("v_proj,q_proj", ("q_proj", "v_proj")),
        ("mlp, q_proj,q_proj", ("q_proj", "gate_proj", "up_proj", "down_proj")),
    ],
)
def test_groups_and_names_are_matched_in_model_order(text: str, names: tuple[str, ...]) -> None:
    assert match_linears(text) == names


@pytest.mark.parametrize(("text", "near"), [("q_porj", "q_proj"), ("atention", "attention"), ("mlp,down", "down_proj")])
def test_an_unknown_linear_is_refused_with_the_nearest_name(text: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        match_linears(text)
    assert f"'{near}'" in caught.value.hint


def test_linears_that_share_an_input_know_each_other() -> None:
    assert shares_input("k_proj") == ("q_proj", "k_proj", "v_proj")
    assert shares_input("gate_proj") == ("gate_proj", "up_proj")
    assert shares_input("down_proj") == ("down_proj",)
    assert LINEAR_GROUPS["attention"] + LINEAR_GROUPS["mlp"] == LINEARS
