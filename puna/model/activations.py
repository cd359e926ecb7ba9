"""The functions inside feed-forward networks, each with its way back, which keeps its input alone.

    silu(x) = x sigmoid(x);   gelu(x) = x Phi(x);   sigmoid;   relu(x) = max(0, x)

Sources: Swish arXiv:1710.05941, GELU arXiv:1606.08415 (the exact form, by erf), GLU arXiv:1612.08083.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.model.linears.derived import Derived

__all__ = ["ACTIVATIONS", "Activation", "activated", "gated"]

_backward = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Activation:
    """value(x), a new tensor, and pull(dy, x) = dy times the slope at x."""

    value: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor, Tensor], Tensor]


def _pull_sigmoid(dy: Tensor, x: Tensor) -> Tensor:
    return _backward.sigmoid_backward(dy, torch.sigmoid(x))


def _pull_relu(dy: Tensor, x: Tensor) -> Tensor:
    return _backward.threshold_backward(dy, x, 0)


ACTIVATIONS = {
    "silu": Activation(F.silu, _backward.silu_backward),
    "gelu": Activation(F.gelu, _backward.gelu_backward),
    "sigmoid": Activation(torch.sigmoid, _pull_sigmoid),
    "relu": Activation(F.relu, _pull_relu),
}


def gated(gate: Tensor, up: Tensor, activation: Activation) -> Derived:
    """activation(gate) * up; the way back forms it again rather than keeping a third tensor of this width."""
    value: Tensor = _Gated.apply(gate, up, activation)
    return Derived(value, (gate, up), partial(_gated, activation=activation))


def activated(x: Tensor, activation: Activation) -> Derived:
    """activation(x), of which the way back keeps x alone."""
    value: Tensor = _Activated.apply(x, activation)
    return Derived(value, (x,), activation.value)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _gated(gate, up, activation=activation)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (gate, up) = upstream, ctx.saved_tensors
        dgate = ctx.activation.pull(dy * up, gate)
        return dgate, ctx.activation.value(gate).mul_(dy), None


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(x)
        ctx.activation = activation
        return activation.value(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return ctx.activation.pull(upstream[0], x), None


def _gated(gate: Tensor, up: Tensor, *, activation: Activation) -> Tensor:
    return activation.value(gate).mul_(up)
