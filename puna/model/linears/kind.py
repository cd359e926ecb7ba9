"""What every stand-in for a dense Linear offers, so that the forward pass never learns which one stands there."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["AnyLinear", "LinearKind", "dense_linear", "dense_weight", "own_weight", "product_type"]


class LinearKind(nn.Module, ABC):
    """A Linear that is not a plain weight matrix: y = f(x), (..., d_in) -> (..., d_out), linear in x up to rounding."""

    in_features: int
    out_features: int

    @abstractmethod
    def dense_weight(self) -> Tensor:
        """The float32 weight that it stands for, (d_out, d_in)."""


AnyLinear = nn.Linear | LinearKind


def product_type(x: Tensor) -> torch.dtype:
    """The type of what a Linear makes of an input: its own, or autocast's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def dense_linear(weight_oi: Tensor) -> nn.Linear:
    """A Linear that holds this weight."""
    linear = nn.Linear(weight_oi.shape[1], weight_oi.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight_oi)
    return linear


@torch.no_grad()
def dense_weight(linear: AnyLinear) -> Tensor:
    """The weight of a Linear of any kind, float32, (d_out, d_in)."""
    return linear.weight.detach().float() if isinstance(linear, nn.Linear) else linear.dense_weight()


@torch.no_grad()
def own_weight(linear: AnyLinear) -> Tensor:
    """As `dense_weight`, but a dense weight as it is, in its own type: a float32 copy of it would be as large again."""
    return linear.weight.detach() if isinstance(linear, nn.Linear) else linear.dense_weight()
