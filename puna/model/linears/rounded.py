"""Weights of few bits by the name of their format: int8 (a scale a row), nf4 (64 numbers), q8_0 and q4_0 (32 numbers)."""

from torch import Tensor

from puna.arch.rounding import Rounding
from puna.model.linears.blocks import BlockLinear
from puna.model.linears.dequantised import DequantisedLinear
from puna.model.linears.int8 import Int8WeightLinear
from puna.model.linears.nf4 import Nf4Linear

__all__ = ["rounded", "rounding_of"]


def rounded(weight_oi: Tensor, to: Rounding) -> DequantisedLinear:
    """A Linear that stores a weight so. Errors: UsageError: rows that are no whole number of blocks."""
    match to:
        case "int8":
            return Int8WeightLinear.from_dense(weight_oi)
        case "nf4":
            return Nf4Linear.from_dense(weight_oi)
        case _:
            return BlockLinear.from_dense(weight_oi, to)


def rounding_of(linear: DequantisedLinear) -> Rounding:
    """How a Linear stores its weight."""
    match linear:
        case BlockLinear():
            return linear.name
        case Nf4Linear():
            return "nf4"
        case _:
            return "int8"
