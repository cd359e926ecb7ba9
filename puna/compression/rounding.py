"""Fewer bits: every block Linear in int8, NF4, Q8_0 or Q4_0, factors as well; embedding, norms and head stay.

The weights alone are rounded. With `residual` each dense Linear gets a low-rank correction of what that lost (residual.py).
Sources: Dettmers et al. 2022, arXiv:2208.07339, and 2023, arXiv:2305.14314; ggml; docs/compression.md 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_shapes
from puna.arch.rounding import BLOCK_BYTES, BLOCK_NUMBERS, Rounding
from puna.compression.residual import Correction, correct
from puna.errors import UsageError
from puna.model.linears.dequantised import DequantisedLinear
from puna.model.linears.fused import first_factor
from puna.model.linears.kind import AnyLinear, dense_weight, own_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.linears.rounded import rounded
from puna.model.linears.rounded_low_rank import RoundedLowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import named_linears, replace_linear

__all__ = ["Residual", "check_residual_rank", "check_rounding", "round_linears"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """A correction of so many components beside each rounded weight. grams: X X^T by path, where it fits what is read."""

    rank: int
    correction: Correction = "alternating"
    grams: Mapping[str, Tensor] | None = None


@torch.no_grad()
def round_linears(model: Llama, to: Rounding, residual: Residual | None = None) -> None:
    """Round, in place, what every block Linear stores; factors that several share stay shared, and no factor is corrected.

    Errors: UsageError: rows that are no whole number of blocks; a residual rank that a matrix does not have.
    """
    check_rounding(model, to)
    if residual is not None:
        check_residual_rank(model.config, residual.rank)
    shared: dict[Tensor, DequantisedLinear] = {}
    made: dict[str, AnyLinear] = {}
    for path, linear in named_linears(model):
        if isinstance(linear, LowRankLinear | RoundedLowRankLinear):
            key, (U_Ro, V_Ri) = first_factor(linear), _factors(linear)
            if key not in shared:
                shared[key] = rounded(V_Ri, to)
            made[path] = RoundedLowRankLinear(rounded(U_Ro, to), shared[key])
        elif residual is None:
            made[path] = rounded(own_weight(linear), to)
        else:
            gram_ii = None if residual.grams is None else residual.grams[path]
            made[path], _ = correct(dense_weight(linear), to, residual.rank, residual.correction, gram_ii)
    for path, linear in made.items():
        replace_linear(model, path, linear)


def check_residual_rank(config: ModelConfig, rank: int) -> None:
    """Errors: UsageError: a rank that some block Linear does not have."""
    name, shape = min(linear_shapes(config).items(), key=lambda each: min(each[1]))
    if not 1 <= rank <= min(shape):
        raise UsageError(f"{name}: residual rank: expected 1 to {min(shape)}, got {rank}", "16 is usual")


def check_rounding(model: Llama, to: Rounding, is_factored_first: bool = False) -> None:
    """Whether `round_linears` can do this: blocks lie along the inputs of a weight, and along both widths of factors.

    Args:   is_factored_first: any Linear may have become factors by then.
    Errors: UsageError, as there.
    """
    for path, linear in named_linears(model):
        is_factored = is_factored_first or isinstance(linear, LowRankLinear | RoundedLowRankLinear)
        for width in (linear.in_features, linear.out_features)[: 1 + is_factored]:
            if to in BLOCK_BYTES and width % BLOCK_NUMBERS:
                raise UsageError(
                    f"{path}: {to} expects a width that is a multiple of {BLOCK_NUMBERS}, got {width}",
                    "int8 and nf4 take any width",
                )


def _factors(linear: LowRankLinear | RoundedLowRankLinear) -> tuple[Tensor, Tensor]:
    """U^T (R, d_out) and V (R, d_in), dense."""
    if isinstance(linear, LowRankLinear):
        return linear.U.T.contiguous(), linear.V
    return linear.U.dense_weight(), linear.V.dense_weight()
