"""Surgery: a Linear is found by its path, and what replaces it is all that changes."""

import pytest
import torch
from torch import nn

from puna.arch.modules import LINEARS, linear_path, linear_paths, linear_shapes
from puna.model.linears.kind import dense_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, named_linears, replace_group, replace_linear, replace_linears

PATH = "layers.1.mlp.up_proj"


def copied(linear: nn.Linear) -> nn.Linear:
    copy = nn.Linear(linear.in_features, linear.out_features, bias=False)
    copy.weight = nn.Parameter(linear.weight.detach().clone())
    return copy


def test_named_linears_are_every_linear_of_the_blocks_in_order_with_their_shapes(tiny: Llama) -> None:
    found = list(named_linears(tiny))
    assert [path for path, _ in found] == list(linear_paths(tiny.config))
    shapes = linear_shapes(tiny.config)
    for path, linear in found:
        assert linear is get_linear(tiny, path) is tiny.get_submodule(path)
        assert tuple(dense_weight(linear).shape) == shapes[path.rpartition(".")[2]]
    inside = [name for name, module in tiny.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    assert sorted(inside) == sorted(path for path, _ in found)


def test_named_linears_may_be_replaced_while_they_are_walked(tiny: Llama) -> None:
    walked = []
    for path, linear in named_linears(tiny, ("q_proj", "down_proj")):
        walked.append(path)
        replace_linear(tiny, path, copied(linear))
    assert walked == list(linear_paths(tiny.config, ("q_proj", "down_proj")))


def test_replacing_a_linear_by_its_copy_changes_nothing(tiny: Llama) -> None:
    ids = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = tiny(ids)
    names = list(dict(tiny.named_parameters()))
    replace_linears(tiny, LINEARS, lambda _, linear: copied(linear))
    assert torch.equal(tiny(ids), expected)
    assert list(dict(tiny.named_parameters())) == names


@pytest.mark.parametrize("grad", [True, False])
def test_the_forward_pass_uses_what_was_put_in_place(tiny: Llama, grad: bool) -> None:
    ids = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(0))
    old = get_linear(tiny, PATH)
    factors = LowRankLinear(torch.randn(old.out_features, 4), torch.randn(4, old.in_features))
    replace_linear(tiny, PATH, factors)
    with torch.set_grad_enabled(grad):
        by_factors = tiny(ids).detach()
        dense = nn.Linear(old.in_features, old.out_features, bias=False)
        dense.weight = nn.Parameter(factors.dense_weight())
        replace_linear(tiny, PATH, dense)
        by_product = tiny(ids).detach()
    assert float((by_factors - by_product).abs().max() / by_product.abs().max()) < 1e-5


def test_only_the_named_linears_are_built_anew_each_with_its_own_path(tiny: Llama) -> None:
    before = dict(named_linears(tiny))
    seen = {}

    def build(path: str, linear: nn.Linear) -> nn.Linear:
        seen[path] = linear
        return copied(linear)

    replace_linears(tiny, ("k_proj", "gate_proj"), build)
    assert seen == {path: before[path] for path in linear_paths(tiny.config, ("k_proj", "gate_proj"))}
    after = dict(named_linears(tiny))
    assert {path for path in after if after[path] is not before[path]} == set(seen)


@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")])
@torch.no_grad()
def test_a_group_of_full_rank_is_the_model_that_it_was_made_of(tiny: Llama, names: tuple[str, ...]) -> None:
    ids = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = tiny(ids)
    for layer in range(tiny.config.n_layers):
        group = [linear_path(layer, name) for name in names]
        stacked = torch.cat([dense_weight(get_linear(tiny, path)) for path in group])
        left, values, right = torch.linalg.svd(stacked, full_matrices=False)
        widths = [get_linear(tiny, path).out_features for path in group]
        replace_group(tiny, dict(zip(group, (left * values).split(widths), strict=True)), right)
    assert float((tiny(ids) - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize(
    "paths",
    [
        ("layers.0.mlp.gate_proj", "layers.1.mlp.up_proj"),
        ("layers.0.mlp.up_proj", "layers.0.mlp.gate_proj"),
        ("layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj"),
        ("layers.0.mlp.gate_proj",),
        (),
    ],
)
def test_only_linears_of_one_input_in_their_order_are_a_group(tiny: Llama, paths: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError):
        replace_group(
            tiny, {path: torch.randn(get_linear(tiny, path).out_features, 2) for path in paths}, torch.ones(2, 64)
        )


def test_the_head_is_reached_by_its_name(tiny: Llama) -> None:
    head = copied(get_linear(tiny, "lm_head"))
    replace_linear(tiny, "lm_head", head)
    assert tiny.lm_head is head


def test_a_replacement_of_another_shape_or_a_path_that_is_no_linear_is_our_own_bug(tiny: Llama) -> None:
    with pytest.raises(AssertionError, match=PATH):
        replace_linear(tiny, PATH, nn.Linear(3, 4, bias=False))
    with pytest.raises(AssertionError, match="norm"):
        get_linear(tiny, "norm")
