"""What every stand-in for a dense Linear offers, so that the forward pass never learns which one stands there."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["AnyLinear", "LinearKind", "dense_weight"]


class LinearKind(nn.Module, ABC):
    """A Linear that is not a plain weight matrix: y = f(x), (..., d_in) -> (..., d_out), linear in x up to rounding."""

    in_features: int
    out_features: int

    @abstractmethod
    def dense_weight(self) -> Tensor:
        """The float32 weight that it stands for, (d_out, d_in)."""


AnyLinear = nn.Linear | LinearKind


@torch.no_grad()
def dense_weight(linear: AnyLinear) -> Tensor:
    """The weight of a Linear of any kind, float32, (d_out, d_in)."""
    return linear.weight.detach().float() if isinstance(linear, nn.Linear) else linear.dense_weight()
