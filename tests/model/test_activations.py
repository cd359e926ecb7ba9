"""Activations and feed-forward networks against their formulas. math.md 1.8."""

import math
from dataclasses import replace

import pytest
import torch

from puna.arch.config import ModelConfig
from puna.arch.modules import parameter_count
from puna.arch.variants import FEED_FORWARDS, GATED, matched_ffn_dim
from puna.model.activations import ACTIVATIONS, activated, gated
from puna.model.feed_forward import feed_forward

FORMULAS = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "relu": lambda x: max(0.0, x),
}
POINTS = torch.linspace(-4, 4, 33, dtype=torch.float64) + 0.01


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_function_is_its_formula(name: str) -> None:
    expected = torch.tensor([FORMULAS[name](float(x)) for x in POINTS], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name].value(POINTS), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_ways_back_pass_a_central_difference_check(name: str) -> None:
    gate, up = POINTS.clone().requires_grad_(), POINTS.flip(0).clone().requires_grad_()
    way = ACTIVATIONS[name]
    assert torch.autograd.gradcheck(lambda g, u: gated(g, u, way).value, (gate, up), eps=1e-6, rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradcheck(lambda x: activated(x, way).value, (gate,), eps=1e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", FEED_FORWARDS)
def test_each_network_is_its_formula(tiny_config: ModelConfig, kind: str) -> None:
    torch.manual_seed(0)
    network = feed_forward(replace(tiny_config, dim=6, ffn_dim=10, ffn=kind, mlp_bias=True)).double()
    x, f = torch.randn(2, 3, 6, dtype=torch.float64), torch.vmap(ACTIVATIONS[FEED_FORWARDS[kind]].value)
    middle = x @ network.up_proj.weight.T + network.up_proj.bias
    if kind in GATED:
        middle = f(x @ network.gate_proj.weight.T + network.gate_proj.bias) * middle
    else:
        middle = f(middle)
    expected = middle @ network.down_proj.weight.T + network.down_proj.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-12)


def test_two_matrices_of_the_matched_width_hold_as_much_as_three(tiny_config: ModelConfig) -> None:
    plain = replace(tiny_config, ffn="relu", ffn_dim=matched_ffn_dim(tiny_config.ffn_dim))
    assert parameter_count(plain) == parameter_count(tiny_config)
    assert matched_ffn_dim(14_336) == 21_504
