"""SwiGLU: y = W_down (silu(W_gate x) * (W_up x)).

Source: Shazeer 2020, arXiv:2002.05202.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.arch.config import ModelConfig
from puna.model.linears.derived import Derived
from puna.model.linears.group import project_together

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """The gated feed-forward network of one layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor | Derived) -> Tensor:
        """Args: x_BTD. Returns: the same shape."""
        gate_BTF, up_BTF = project_together(x_BTD, self.gate_proj, self.up_proj)
        product_BTF = Derived(_SwiGLU.apply(gate_BTF, up_BTF), (gate_BTF, up_BTF), _swiglu)
        return project_together(product_BTF, self.down_proj)[0]


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up; the way back forms silu(gate) again rather than keeping a third tensor of this width."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        (dy,), (gate, up) = upstream, ctx.saved_tensors
        dgate = torch.ops.aten.silu_backward(dy * up, gate)
        return dgate, F.silu(gate).mul_(dy)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate).mul_(up)
