"""SwiGLU against its formula. math.md 1.8."""

from dataclasses import replace

import pytest
import torch

from puna.arch.config import ModelConfig
from puna.model.feed_forward import FeedForward


@pytest.fixture
def swiglu(tiny_config: ModelConfig) -> FeedForward:
    torch.manual_seed(0)
    return FeedForward(replace(tiny_config, dim=6, ffn_dim=10)).double()


def test_the_gate_is_the_activated_branch(swiglu: FeedForward) -> None:
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    gate, up = x @ swiglu.gate_proj.weight.T, x @ swiglu.up_proj.weight.T
    expected = (gate / (1 + torch.exp(-gate)) * up) @ swiglu.down_proj.weight.T
    torch.testing.assert_close(swiglu(x), expected, rtol=1e-10, atol=1e-12)


def test_the_gradients_pass_a_central_difference_check(swiglu: FeedForward) -> None:
    x = torch.randn(1, 2, 6, dtype=torch.float64).requires_grad_()
    leaves = (x, *swiglu.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: swiglu(x), leaves, eps=1e-6, rtol=1e-6, atol=1e-8)


def test_the_activation_has_silus_minimum(swiglu: FeedForward) -> None:
    one = torch.ones(1, 1, 6, dtype=torch.float64)
    with torch.no_grad():
        for linear, value in ((swiglu.gate_proj, -1.2784645 / 6), (swiglu.up_proj, 1 / 6), (swiglu.down_proj, 1 / 10)):
            linear.weight.fill_(value)
    torch.testing.assert_close(swiglu(one), -0.2784645 * one, rtol=0, atol=1e-6)


def test_a_closed_gate_lets_nothing_through(swiglu: FeedForward) -> None:
    torch.nn.init.zeros_(swiglu.gate_proj.weight)
    assert not swiglu(torch.randn(1, 2, 6, dtype=torch.float64)).any()
