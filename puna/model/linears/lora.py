"""LoRA: y = W x + s (B A - B0 A0) x with W frozen; and DoRA, which scales each row to a length of its own besides.

A fresh adapter is the base exactly: B = 0, or B A = B0 A0 by the same products. A DoRA's row lengths are

    |W_i + s B_i A|^2 = |W_i|^2 + 2 s B_i . (W A^T)_i + s^2 B_i (A A^T) B_i^T

so that the whole update is never formed; they count as constants on the way back, as in section 4.3 of its paper.
Sources: Hu et al. 2021, arXiv:2106.09685, section 4.1; Liu et al. 2024, arXiv:2402.09353.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.model.linears.adapter import LoraSettings, merged_weight, starting_factors
from puna.model.linears.kind import AnyLinear, LinearKind, dense_weight

__all__ = ["DoraLinear", "LoraEmbedding", "LoraLinear", "lora_linear"]


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
        y: Tensor = self.base(x)
        middle = F.linear(x, self.A.to(x.dtype)) * self.scale
        B = self.B.to(x.dtype)
        if self.A0 is None or self.B0 is None:  # one pass over y: the sum is formed inside the product
            return torch.addmm(y.flatten(0, -2), middle.flatten(0, -2), B.T).view_as(y)
        start = F.linear(F.linear(x, self.A0.to(x.dtype)) * self.scale, self.B0.to(x.dtype))
        return y + (F.linear(middle, B) - start)

    def dense_weight(self) -> Tensor:
        """The merged weight in float32, (d_out, d_in)."""
        return merged_weight(dense_weight(self.base), (self.A, self.B), self.scale, self._start(), None)

    def _start(self) -> tuple[Tensor, Tensor] | None:
        return None if self.A0 is None or self.B0 is None else (self.A0, self.B0)


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
