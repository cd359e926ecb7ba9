"""An adapter as data: its settings, its tensors by the path of their module, and what they make of a base weight.

    W' = W + s (B A - B0 A0),  s = alpha / rank, or alpha / sqrt(rank) (rsLoRA)
    W' = m * W'' / |W''| for each output row, W'' the line above       (DoRA)

B0 A0 is zero, or the part of W that the factors began as: its leading singular part (PiSSA), the leading part of a QR
(OLoRA). Taking it off again beside the base, and not inside, leaves W as it was: other adapters may share it.
Sources: arXiv:2106.09685 (LoRA), 2312.03732 (rsLoRA), 2402.09353 (DoRA), 2404.02948 (PiSSA), 2406.01775 (OLoRA).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from puna.arch.modules import EMBEDDING
from puna.errors import CheckpointMismatch, UsageError, unknown_name

__all__ = ["Adapter", "LoraOverride", "LoraSettings", "Start", "merged_weight", "starting_factors"]

Start = Literal["zeros", "pissa", "olora"]
_OTHER_BASE = "use the base model that the adapter was trained on"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOverride:
    """Another rank or alpha for the modules whose path is, or ends in, `target`: `down_proj`, `layers.3.mlp.down_proj`."""

    target: str
    rank: int | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.rank is None and self.alpha is None:
            raise UsageError(f"lora.overrides: {self.target}: expected a rank or an alpha, got neither", "give one")
        _check(f"lora.overrides: {self.target}", self.rank, self.alpha)

    def matches(self, path: str) -> bool:
        """Whether a module is meant."""
        return f".model.{path}".endswith(f".{self.target}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """What an adapter is, without its tensors.

    overrides: other ranks and alphas; the first that names a module counts.
    rank_stabilized: divide alpha by sqrt(rank) instead of rank. magnitudes: learn each output row's length apart (DoRA).
    start: what the factors begin as.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    overrides: tuple[LoraOverride, ...] = ()
    rank_stabilized: bool = False
    magnitudes: bool = False
    start: Start = "zeros"

    def __post_init__(self) -> None:
        _check("lora", self.rank, self.alpha)
        if self.start not in get_args(Start):
            raise unknown_name("lora.start", self.start, get_args(Start))
        if self.magnitudes and self.start != "zeros":
            raise UsageError(f"lora.start: expected zeros beside magnitudes, got {self.start}", "choose one of the two")
        if EMBEDDING in self.targets and (self.magnitudes or self.start != "zeros"):
            raise UsageError(
                f"lora.targets: expected Linears for {'magnitudes' if self.magnitudes else self.start}, got {EMBEDDING}",
                "leave the embedding out, or use plain LoRA",
            )

    def rank_of(self, path: str) -> int:
        """The rank at a module."""
        return next((each.rank for each in self.overrides if each.rank is not None and each.matches(path)), self.rank)

    def alpha_of(self, path: str) -> float:
        """The alpha at a module."""
        return next(
            (each.alpha for each in self.overrides if each.alpha is not None and each.matches(path)), self.alpha
        )

    def scale_of(self, path: str) -> float:
        """What B A is multiplied by at a module."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(rank) if self.rank_stabilized else rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Settings and tensors by the path of their module: (A_Ri, B_oR), and with magnitudes m_o.

    For the embedding d_in is the vocabulary and d_out the width. copies: base weights that a PEFT file repeats.
    base_sha256, base_type: the weights it learned beside, and what they were rounded to; None: not known.
    beside_corrected: among these are weights of few bits with their correction, which no other program forms.
    """

    settings: LoraSettings
    tensors: dict[str, tuple[Tensor, Tensor]]
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, Tensor] = field(default_factory=dict)
    base_sha256: str | None = None
    base_type: str | None = None
    beside_corrected: bool = False

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Compare with a model's weights. Args: shapes: by path of the module. Errors: CheckpointMismatch naming a path."""
        for path, (a, b) in self.tensors.items():
            if path not in shapes:
                raise CheckpointMismatch(f"adapter: {path}: the model has no such weight of its own", _OTHER_BASE)
            rank, (d_out, d_in) = self.settings.rank_of(path), shapes[path]
            if path == EMBEDDING:
                d_out, d_in = d_in, d_out
            got, expected = (tuple(a.shape), tuple(b.shape)), ((rank, d_in), (d_out, rank))
            if got != expected:
                raise CheckpointMismatch(
                    f"adapter: {path}: expected A and B of shapes {expected[0]} and {expected[1]}, got {got[0]} and {got[1]}",
                    _OTHER_BASE,
                )
            if self.settings.magnitudes and tuple(self.magnitudes[path].shape) != (d_out,):
                got_shape = tuple(self.magnitudes[path].shape)
                raise CheckpointMismatch(f"adapter: {path}: expected {d_out} magnitudes, got {got_shape}", _OTHER_BASE)

    @torch.no_grad()
    def merged(self, path: str, weight: Tensor) -> Tensor:
        """The weight of a module with the adapter folded in, float32. Args: weight: the base's."""
        (a, b), scale = self.tensors[path], self.settings.scale_of(path)
        if path == EMBEDDING:
            return weight.float() + scale * (b.float() @ a.float()).T
        start = starting_factors(weight, self.settings, path)
        return merged_weight(weight, (a, b), scale, start, self.magnitudes.get(path))


@torch.no_grad()
def merged_weight(
    weight: Tensor,
    factors: tuple[Tensor, Tensor],
    scale: float,
    start: tuple[Tensor, Tensor] | None,
    magnitude: Tensor | None,
) -> Tensor:
    """W' of the module's docstring, float32, (d_out, d_in)."""
    A_Ri, B_oR = factors
    update = B_oR.float() @ A_Ri.float()
    if start is not None:
        update = update - start[1].float() @ start[0].float()
    merged = weight.float() + scale * update
    if magnitude is None:
        return merged
    return merged * (magnitude.float() / merged.norm(dim=1))[:, None]


@torch.no_grad()
def starting_factors(weight_oi: Tensor, settings: LoraSettings, path: str) -> tuple[Tensor, Tensor] | None:
    """(A0_Ri, B0_oR) with s B0 A0 the part of the weight that the adapter begins as, float32; None for zeros.

    A whole singular value decomposition: seconds for a width of 1,000, minutes from 4,000 on.
    """
    rank, scale = settings.rank_of(path), settings.scale_of(path)
    if settings.start == "zeros":
        return None
    if settings.start == "olora":
        q, r = torch.linalg.qr(weight_oi.float())
        return r[:rank].contiguous(), q[:, :rank].contiguous()
    u, s, vh = torch.linalg.svd(weight_oi.float(), full_matrices=False)
    root_R = (s[:rank] / scale).sqrt()
    return root_R[:, None] * vh[:rank], u[:, :rank] * root_R


def _check(name: str, rank: int | None, alpha: float | None) -> None:
    if rank is not None and rank < 1:
        raise UsageError(f"{name}.rank: expected at least 1, got {rank}", "8 or 16 are common")
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise UsageError(f"{name}.alpha: expected more than 0, got {alpha}", "twice the rank is common")
