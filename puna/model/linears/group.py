"""Linears that read the same input (q, k, v; gate, up): while all are dense, or all a LoRA beside that, one node of the graph.
For those that share a factor, y_i = U_i (V x), V x is formed once.

    y_i = x W_i^T;   dx = sum_i dy_i W_i,   dW_i = dy_i^T x

The input is cast once, kept once or formed again (derived.py), and its gradient is summed inside the products instead of in
passes of their own.
Joining the weights into one product does the same work but copies weights and gradients (docs/findings.md).
"""

from typing import Any

import torch
from torch import Tensor, nn

from puna.model.linears.derived import Derived, derived, value_of
from puna.model.linears.kind import AnyLinear, product_type
from puna.model.linears.lora import LoraLinear, adapted_products
from puna.model.linears.low_rank import LowRankLinear

__all__ = ["dense_products", "project_together"]


def project_together(x_BTD: Tensor | Derived, *linears: AnyLinear) -> tuple[Tensor, ...]:
    """The output of each Linear for the same input, in order."""
    if torch.is_grad_enabled():
        dense = [linear for linear in linears if type(linear) is nn.Linear]
        if len(dense) == len(linears):
            products = dense_products(x_BTD, *(linear.weight for linear in dense))
            biases = (linear.bias for linear in dense)
            return tuple(y if b is None else y + b.to(y.dtype) for y, b in zip(products, biases, strict=True))
        plain = [linear for linear in linears if type(linear) is LoraLinear and linear.is_plain]
        if len(plain) == len(linears):
            return adapted_products(x_BTD, *plain)
    fused = _fused_products(x_BTD, linears)
    return tuple(fused[linear] if linear in fused else linear(value_of(x_BTD)) for linear in linears)


def dense_products(x: Tensor | Derived, *weights_oi: Tensor) -> tuple[Tensor, ...]:
    """x W^T for each weight, in autocast's type; kept are the weights themselves, no rounded copy, and if a weight trains x
    or what it is formed of.
    """
    source = derived(x)
    products: tuple[Tensor, ...] = _SharedInput.apply(source.value, source, *weights_oi)
    return products


def _fused_products(x: Tensor | Derived, linears: tuple[AnyLinear, ...]) -> dict[AnyLinear, Tensor]:
    """The outputs of those Linears, bare or beneath a LoRA, that share their V with another."""
    members: dict[Tensor, list[tuple[AnyLinear, LowRankLinear]]] = {}
    for linear in linears:
        base = linear.base if type(linear) is LoraLinear else linear
        if isinstance(base, LowRankLinear):
            members.setdefault(base.V, []).append((linear, base))
    products: dict[AnyLinear, Tensor] = {}
    for V_Ri, group in members.items():
        if len(group) > 1:
            (middle,) = dense_products(x, V_Ri)
            outputs = dense_products(middle, *(base.U for _, base in group))
            for (linear, _), y in zip(group, outputs, strict=True):
                products[linear] = linear.beside(value_of(x), y) if isinstance(linear, LoraLinear) else y
    return products


class _SharedInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Derived, *weights: Tensor) -> tuple[Tensor, ...]:
        dtype = product_type(x)
        x_ND = x.flatten(0, -2).to(dtype)
        kept = (source.sources or (x_ND,)) if any(ctx.needs_input_grad[2:]) else ()
        ctx.save_for_backward(*weights, *kept)
        ctx.form, ctx.x_shape, ctx.x_dtype = source.form, x.shape, x.dtype
        return tuple((x_ND @ weight.to(dtype).T).unflatten(0, x.shape[:-1]) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        count = len(upstream)
        saved = ctx.saved_tensors  # read once: checkpointing forms it at the first look and gives it up
        weights, kept = saved[:count], saved[count:]
        dys = [dy.flatten(0, -2) for dy in upstream]
        dweights: list[Tensor | None] = [None] * count
        if kept:
            x_ND = ctx.form(*kept).flatten(0, -2).to(dys[0].dtype)
            wanted = zip(dys, weights, ctx.needs_input_grad[2:], strict=True)
            dweights = [(dy.T @ x_ND).to(weight.dtype) if needed else None for dy, weight, needed in wanted]
            del x_ND  # dx takes its place
        dx_ND = None
        if ctx.needs_input_grad[0]:
            dx_ND = dys[0] @ weights[0].to(dys[0].dtype)
            for dy, weight in zip(dys[1:], weights[1:], strict=True):
                torch.addmm(dx_ND, dy, weight.to(dy.dtype), out=dx_ND)
            dx_ND = dx_ND.view(ctx.x_shape).to(ctx.x_dtype)
        return dx_ND, None, *dweights
