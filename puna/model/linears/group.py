"""Linears that read the same input (q, k, v; gate, up) multiply as one product while all of them are dense and train.

One product instead of three reads the input once and, in the backward pass, forms its gradient once. Joining the
weights copies them, which is small beside a training step and large beside one decoded token: so only under autograd.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.model.linears.kind import AnyLinear

__all__ = ["project_together"]


def project_together(x_BTD: Tensor, *linears: AnyLinear) -> tuple[Tensor, ...]:
    """The output of each Linear for the same input, in order."""
    dense = [linear for linear in linears if type(linear) is nn.Linear]
    if not (torch.is_grad_enabled() and len(dense) == len(linears)):
        return tuple(linear(x_BTD) for linear in linears)
    joined = F.linear(x_BTD, torch.cat([linear.weight for linear in dense]))
    return joined.split([linear.out_features for linear in dense], dim=-1)
