"""Rounded weights: every block Linear in int8 with a scale for each output row; embedding, norms and head stay.

Activations are rounded for each token as they arrive (model/linears/int8.py). Needs no calibration.
Source: Dettmers et al. 2022, arXiv:2208.07339; docs/compression.md 4.
"""

from puna.arch.modules import LINEARS
from puna.model.linears.int8 import Int8Linear
from puna.model.linears.kind import dense_weight
from puna.model.llama import Llama
from puna.model.surgery import replace_linears

__all__ = ["quantize_int8"]


def quantize_int8(model: Llama) -> None:
    """Replace, in place, every block Linear of whatever kind by the int8 rounding of its dense weight."""
    replace_linears(model, LINEARS, lambda _, linear: Int8Linear.from_dense(dense_weight(linear)))
