"""Which entry of config.json stands for which kind of Linear, both ways."""

import torch
from torch import nn

from puna.errors import UsageError
from puna.model.linears.corrected import CorrectedLinear
from puna.model.linears.dequantised import DequantisedLinear
from puna.model.linears.kind import AnyLinear
from puna.model.linears.low_rank import LowRankLinear
from puna.model.linears.rounded import rounded, rounding_of
from puna.model.linears.rounded_low_rank import RoundedLowRankLinear
from puna.weights.names import CorrectedEntry, FusedEntry, LinearEntry, LowRankEntry, RoundedEntry

__all__ = ["empty_linear", "entry_of"]


def entry_of(path: str, linear: AnyLinear) -> LinearEntry | None:
    """What says of which kind a Linear is, as if it shared nothing; None of a dense one.

    Errors: UsageError: a kind that is part of no model, such as an adapter.
    """
    match linear:
        case nn.Linear():
            return None
        case LowRankLinear():
            return LowRankEntry(path=path, rank=linear.rank)
        case RoundedLowRankLinear():
            return LowRankEntry(path=path, rank=linear.rank, factors=rounding_of(linear.V))
        case CorrectedLinear():
            return CorrectedEntry(path=path, base=rounding_of(linear.base), rank=linear.rank)
        case DequantisedLinear():
            return RoundedEntry(path=path, kind=rounding_of(linear))
        case _:
            raise UsageError(f"{path}: {type(linear).__name__} cannot be stored in a model", "merge the adapter first")


def empty_linear(entry: LinearEntry, d_out: int, d_in: int) -> AnyLinear:
    """A Linear of the kind that an entry says, on the meta device, to be loaded."""
    with torch.device("meta"):
        match entry:
            case LowRankEntry() | FusedEntry():
                if entry.factors is None:
                    return LowRankLinear.empty(d_out, d_in, entry.rank)
                U_Ro, V_Ri = (rounded(torch.empty(entry.rank, width), entry.factors) for width in (d_out, d_in))
                return RoundedLowRankLinear(U_Ro, V_Ri)
            case RoundedEntry(kind=to):
                return rounded(torch.empty(d_out, d_in), to)
            case CorrectedEntry(base=to, rank=rank):
                base = rounded(torch.empty(d_out, d_in), to)
                return CorrectedLinear(base, torch.empty(d_out, rank), torch.empty(rank, d_in))
