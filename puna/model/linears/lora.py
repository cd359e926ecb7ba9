"""LoRA: y = W x + (alpha / rank) B A x with W frozen, A (R, d_in) random, B (d_out, R) zero.

B = 0 makes a fresh adapter the base exactly. Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.errors import CheckpointMismatch, UsageError
from puna.model.linears.kind import AnyLinear, LinearKind, dense_weight

__all__ = ["Adapter", "LoraLinear", "LoraSettings", "lora_update"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """What an adapter is, without its tensors."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"lora.rank: expected at least 1, got {self.rank}", "8 or 16 are common")
        if not math.isfinite(self.alpha):
            raise UsageError(f"lora.alpha: expected a finite number, got {self.alpha}", "twice the rank is common")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Settings and tensors of a LoRA; tensors by the path of their Linear, as (A_Ri, B_oR)."""

    settings: LoraSettings
    tensors: dict[str, tuple[Tensor, Tensor]]
    base_sha256: str | None = field(default=None)

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with a model's Linears. Args: shapes: (d_out, d_in) by path. Errors: CheckpointMismatch naming a path."""
        rank, hint = self.settings.rank, "use the base model that the adapter was trained on"
        for path, (a, b) in self.tensors.items():
            if path not in shapes:
                raise CheckpointMismatch(f"adapter: {path}: the model has no such Linear", hint)
            d_out, d_in = shapes[path]
            got, expected = (tuple(a.shape), tuple(b.shape)), ((rank, d_in), (d_out, rank))
            if got != expected:
                raise CheckpointMismatch(
                    f"adapter: {path}: expected A and B of shapes {expected[0]} and {expected[1]}, got {got[0]} and {got[1]}",
                    hint,
                )


class LoraLinear(LinearKind):
    """A frozen Linear of any kind with a trainable low-rank update beside it."""

    def __init__(self, base: AnyLinear, settings: LoraSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.settings = settings
        bound = 1 / math.sqrt(self.in_features)
        a = torch.empty(settings.rank, self.in_features).uniform_(-bound, bound, generator=generator)
        self.A = nn.Parameter(a)
        self.B = nn.Parameter(torch.zeros(self.out_features, settings.rank))

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (..., d_in). Returns: (..., d_out)."""
        y: Tensor = self.base(x)
        return y + F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.settings.scale

    def dense_weight(self) -> Tensor:
        """The merged weight in float32, (d_out, d_in)."""
        return dense_weight(self.base) + self.update()

    @torch.no_grad()
    def update(self) -> Tensor:
        """What the adapter adds to the weight: scale * B A, float32, (d_out, d_in)."""
        return lora_update(self.settings, self.A, self.B)


def lora_update(settings: LoraSettings, A_Ri: Tensor, B_oR: Tensor) -> Tensor:
    """What an adapter adds to a weight: scale * B A, float32, (d_out, d_in)."""
    return settings.scale * (B_oR.float() @ A_Ri.float())
