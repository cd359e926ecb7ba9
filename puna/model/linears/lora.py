"""LoRA: y = W x + s (B A - B0 A0) x with W frozen; and DoRA, which scales each row to a length of its own besides.

A fresh adapter is the base exactly: B = 0, or B A = B0 A0 by the same products. A DoRA's row lengths are

    |W_i + s B_i A|^2 = |W_i|^2 + 2 s B_i . (W A^T)_i + s^2 B_i (A A^T) B_i^T

so that the whole update is never formed; they count as constants on the way back, as in section 4.3 of its paper.
Sources: Hu et al. 2021, arXiv:2106.09685, section 4.1; Liu et al. 2024, arXiv:2402.09353.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.model.linears.adapter import LoraSettings, merged_weight, starting_factors
from puna.model.linears.derived import Derived, derived
from puna.model.linears.kind import AnyLinear, LinearKind, dense_weight, product_type

__all__ = ["DoraLinear", "LoraEmbedding", "LoraLinear", "adapted_products", "lora_linear"]


class LoraLinear(LinearKind):
    """A frozen Linear of any kind with a trainable low-rank update beside it."""

    A0: Tensor | None
    B0: Tensor | None

    def __init__(
        self, base: AnyLinear, settings: LoraSettings, generator: torch.Generator | None = None, path: str = ""
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.settings, self.scale, rank = settings, settings.scale_of(path), settings.rank_of(path)
        start = None if settings.start == "zeros" else starting_factors(dense_weight(base), settings, path)
        a, b = start or (_uniform(rank, self.in_features, generator), torch.zeros(self.out_features, rank))
        self.A, self.B = nn.Parameter(a), nn.Parameter(b)
        for name, factor in zip(("A0", "B0"), start or (None, None), strict=True):
            self.register_buffer(name, None if factor is None else factor.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out)."""
        if self.is_plain and torch.is_grad_enabled():
            return adapted_products(x, self)[0]
        return self.beside(x, self.base(x))

    def beside(self, x: Tensor, y: Tensor) -> Tensor:
        """The output, given the base's y (..., d_out) of the same input; a DoRA's before its scaling."""
        middle = F.linear(x, self.A.to(x.dtype)) * self.scale
        B = self.B.to(x.dtype)
        if self.A0 is None or self.B0 is None:  # one pass over y: the sum is formed inside the product
            return torch.addmm(y.flatten(0, -2), middle.flatten(0, -2), B.T).view_as(y)
        start = F.linear(F.linear(x, self.A0.to(x.dtype)) * self.scale, self.B0.to(x.dtype))
        return y + (F.linear(middle, B) - start)

    @property
    def is_plain(self) -> bool:
        """Whether `adapted_products` computes it: a dense frozen base and nothing to take off."""
        return isinstance(self.base, nn.Linear) and self.A0 is None

    def dense_weight(self) -> Tensor:
        """The merged weight in float32, (d_out, d_in)."""
        return merged_weight(dense_weight(self.base), (self.A, self.B), self.scale, self._start(), None)

    def base_weight(self) -> Tensor:
        """The weight that it stands beside, float32, (d_out, d_in)."""
        return dense_weight(self.base)

    def _start(self) -> tuple[Tensor, Tensor] | None:
        return None if self.A0 is None or self.B0 is None else (self.A0, self.B0)


def adapted_products(x: Tensor | Derived, *loras: LoraLinear) -> tuple[Tensor, ...]:
    """The output of each plain LoRA for the same input, as one node of the graph; a DoRA's before its scaling.

    The factors A multiply as one; every sum is formed inside a product: of y, of the input's gradient.
    """
    weights = [lora.base.weight for lora in loras if isinstance(lora.base, nn.Linear)]
    assert len(weights) == len(loras)
    source, scales = derived(x), tuple(lora.scale for lora in loras)
    factors = (*(lora.A for lora in loras), *(lora.B for lora in loras))
    return _AdaptedProducts.apply(source.value, source, scales, *weights, *factors)


class _AdaptedProducts(torch.autograd.Function):
    """y_i = x W_i^T + s_i x A_i^T B_i^T;  m_i = s_i dy_i B_i:  dA_i = m_i^T x,  dB_i = s_i dy_i^T x A_i^T,
    dx = sum of dy_i W_i + m_i A_i.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Derived, scales: tuple[float, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        count, dtype = len(scales), product_type(x)
        weights, As, Bs = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        x_ND = x.flatten(0, -2).to(dtype)
        middles = (x_ND @ torch.cat([A.to(dtype) for A in As]).T).split([len(A) for A in As], dim=1)
        middles = tuple(middle * scale for middle, scale in zip(middles, scales, strict=True))
        outputs = []
        for middle, weight, B in zip(middles, weights, Bs, strict=True):
            y_No = x_ND @ weight.to(dtype).T
            outputs.append(torch.addmm(y_No, middle, B.to(dtype).T, out=y_No).unflatten(0, x.shape[:-1]))
        ctx.save_for_backward(*middles, *tensors, *(source.sources or (x_ND,)))
        ctx.form, ctx.scales, ctx.x_shape, ctx.x_dtype = source.form, scales, x.shape, x.dtype
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        count = len(ctx.scales)
        saved = ctx.saved_tensors
        middles, weights, As, Bs = (saved[start : start + count] for start in range(0, 4 * count, count))
        kept = saved[4 * count :]
        dys = [dy.flatten(0, -2) for dy in upstream]
        parts = [(dy @ B.to(dy.dtype)) * scale for dy, B, scale in zip(dys, Bs, ctx.scales, strict=True)]
        dmiddle = torch.cat(parts, dim=1)
        x_ND = ctx.form(*kept).flatten(0, -2).to(dmiddle.dtype)
        dAs = (dmiddle.T @ x_ND).split([len(A) for A in As])
        del x_ND  # dx takes its place
        dx_ND = None
        if ctx.needs_input_grad[0]:
            dx_ND = dmiddle @ torch.cat([A.to(dmiddle.dtype) for A in As])
            for dy, weight in zip(dys, weights, strict=True):
                torch.addmm(dx_ND, dy, weight.to(dy.dtype), out=dx_ND)
            dx_ND = dx_ND.view(ctx.x_shape).to(ctx.x_dtype)
        dBs = (dy.T @ middle for dy, middle in zip(dys, middles, strict=True))
        factors = zip((*dAs, *dBs), (*As, *Bs), strict=True)
        return dx_ND, None, None, *(None,) * count, *(gradient.to(factor.dtype) for gradient, factor in factors)


class DoraLinear(LoraLinear):
    """A LoRA whose rows are then scaled to trainable lengths, `magnitude` (d_out)."""

    squares_o: Tensor

    def __init__(
        self, base: AnyLinear, settings: LoraSettings, generator: torch.Generator | None = None, path: str = ""
    ) -> None:
        super().__init__(base, settings, generator, path)
        squares_o = dense_weight(base).square().sum(1)
        self.register_buffer("squares_o", squares_o, persistent=False)
        self.magnitude = nn.Parameter(squares_o.sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out)."""
        y = super().forward(x)
        return y * (self.magnitude / self._lengths_o()).to(y.dtype)

    def dense_weight(self) -> Tensor:
        """The merged weight in float32, (d_out, d_in)."""
        return merged_weight(dense_weight(self.base), (self.A, self.B), self.scale, None, self.magnitude)

    @torch.no_grad()
    def _lengths_o(self) -> Tensor:
        A, B = self.A.float(), self.B.float()
        cross_oR = dense_weight(self.base) @ A.T
        squares_o = self.squares_o + (B * (2 * self.scale * cross_oR + self.scale**2 * (B @ (A @ A.T)))).sum(1)
        return squares_o.clamp_min_(0).sqrt_()


class LoraEmbedding(nn.Module):
    """A frozen table with a trainable low-rank update: x = E[id] + s B A[:, id]; A (R, V) begins as zero."""

    def __init__(
        self, base: nn.Embedding, settings: LoraSettings, generator: torch.Generator | None = None, path: str = ""
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.settings, self.scale, rank = settings, settings.scale_of(path), settings.rank_of(path)
        self.A = nn.Parameter(torch.zeros(rank, base.num_embeddings))
        self.B = nn.Parameter(torch.empty(base.embedding_dim, rank).normal_(generator=generator))

    @property
    def weight(self) -> Tensor:
        """The frozen table, (V, d)."""
        return self.base.weight

    def base_weight(self) -> Tensor:
        """The frozen table in float32, (V, d)."""
        return self.base.weight.detach().float()

    def forward(self, ids: Tensor) -> Tensor:
        """Args: ids (...). Returns: (..., d)."""
        x: Tensor = self.base(ids)
        return x + (F.linear(F.embedding(ids, self.A.T), self.B) * self.scale).to(x.dtype)

    def dense_weight(self) -> Tensor:
        """The merged table in float32, (V, d)."""
        return self.base.weight.float() + self.scale * (self.B.detach().float() @ self.A.detach().float()).T


def lora_linear(
    base: AnyLinear, settings: LoraSettings, generator: torch.Generator | None = None, path: str = ""
) -> LoraLinear:
    """The kind that the settings ask for, beside a Linear."""
    return (DoraLinear if settings.magnitudes else LoraLinear)(base, settings, generator, path)


def _uniform(rank: int, width: int, generator: torch.Generator | None) -> Tensor:
    bound = 1 / math.sqrt(width)
    return torch.empty(rank, width).uniform_(-bound, bound, generator=generator)
