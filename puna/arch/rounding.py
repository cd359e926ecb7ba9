"""The formats in which a weight of few bits is stored, by name; what they are: model/linears/rounded.py. No torch is needed."""

from typing import Literal, get_args

__all__ = ["BLOCK_BYTES", "BLOCK_NUMBERS", "NF4_MAXIMA", "NF4_NUMBERS", "ROUNDINGS", "Rounding"]

Rounding = Literal["int8", "nf4", "q8_0", "q4_0"]
"""int8: a scale for each row. nf4: one for 64 numbers, doubly quantised. q8_0, q4_0: GGUF's, one inside each block of 32."""

ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
NF4_NUMBERS, NF4_MAXIMA = 64, 256  # numbers that share a maximum; maxima that share a scale
BLOCK_NUMBERS = 32
BLOCK_BYTES: dict[str, int] = {"q8_0": 34, "q4_0": 18}
