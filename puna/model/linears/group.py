"""Linears that read the same input (q, k, v; gate, up): while all are dense, or all a LoRA beside that, one node of the graph.

    y_i = x W_i^T;   dx = sum_i dy_i W_i,   dW_i = dy_i^T x

The input is cast and kept once, and its gradient is summed inside the products instead of in passes of their own.
Joining the weights into one product does the same work but copies weights and gradients (docs/findings.md).
"""

from typing import Any

import torch
from torch import Tensor, nn

from puna.model.linears.kind import AnyLinear, product_type
from puna.model.linears.lora import LoraLinear, adapted_products

__all__ = ["dense_products", "project_together"]


def project_together(x_BTD: Tensor, *linears: AnyLinear) -> tuple[Tensor, ...]:
    """The output of each Linear for the same input, in order."""
    if torch.is_grad_enabled():
        dense = [linear for linear in linears if type(linear) is nn.Linear]
        if len(dense) == len(linears):
            return dense_products(x_BTD, *(linear.weight for linear in dense))
        plain = [linear for linear in linears if type(linear) is LoraLinear and linear.is_plain]
        if len(plain) == len(linears):
            return adapted_products(x_BTD, *plain)
    return tuple(linear(x_BTD) for linear in linears)


def dense_products(x: Tensor, *weights_oi: Tensor) -> tuple[Tensor, ...]:
    """x W^T for each weight, in autocast's type; kept are the weights themselves, no rounded copy, and x if a weight trains."""
    products: tuple[Tensor, ...] = _SharedInput.apply(x, *weights_oi)
    return products


class _SharedInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        dtype = product_type(x)
        x_ND = x.flatten(0, -2).to(dtype)
        ctx.save_for_backward(x_ND if any(ctx.needs_input_grad[1:]) else None, *weights)
        ctx.x_shape, ctx.x_dtype = x.shape, x.dtype
        return tuple((x_ND @ weight.to(dtype).T).unflatten(0, x.shape[:-1]) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, *weights = ctx.saved_tensors
        dys = [dy.flatten(0, -2) for dy in upstream]
        dx_ND = None
        if ctx.needs_input_grad[0]:
            dx_ND = dys[0] @ weights[0].to(dys[0].dtype)
            for dy, weight in zip(dys[1:], weights[1:], strict=True):
                torch.addmm(dx_ND, dy, weight.to(dy.dtype), out=dx_ND)
            dx_ND = dx_ND.view(ctx.x_shape).to(ctx.x_dtype)
        wanted = zip(dys, weights, ctx.needs_input_grad[1:], strict=True)
        return dx_ND, *((dy.T @ x_ND).to(weight.dtype) if needed else None for dy, weight, needed in wanted)
