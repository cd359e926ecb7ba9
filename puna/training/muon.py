"""Muon: a matrix moves along the nearest orthogonal matrix to its momentum.

    M = beta M + (1 - beta) G;  U = (1 - beta) G + beta M;  w -= rate (0.2 sqrt(max(d_out, d_in)) O(U) + decay w)

Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982. O is found by five steps of Newton and Schulz,

    X = a X + (b S + c S^2) X,  S = X X^T,  from X = U / |U|

which bring every singular value near 1, between about 0.7 and 1.2. torch's own Muon forms these products in bfloat16, which
many CPUs multiply at a tenth of float32's rate (docs/findings.md 36): here they are float32 on a CPU.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Muon", "orthogonalized"]

MOMENTUM, STEPS = 0.95, 5
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(Optimizer):
    """Matrices alone; `lr` and `weight_decay` as AdamW's, since 0.2 sqrt(max) makes the update as large as AdamW's usual one.

    State: `momentum_buffer`, of the weight's shape and type.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"], group["weight_decay"])
        return None if closure is None else closure()

    def _update(self, weight: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        ahead = orthogonalized(gradient.lerp(momentum, MOMENTUM))
        weight.mul_(1 - rate * decay).add_(ahead, alpha=-rate * 0.2 * max(weight.shape) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, nearly: of the same shape, in float32 on a CPU and in bfloat16 on a card."""
    X = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    X = X.T if matrix.shape[0] > matrix.shape[1] else X  # the shorter side's Gram is the smaller
    X = X / X.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        S = X @ X.T
        X = torch.addmm(X, torch.addmm(S, S, S, beta=B, alpha=C), X, beta=A)
    return X.T if matrix.shape[0] > matrix.shape[1] else X
