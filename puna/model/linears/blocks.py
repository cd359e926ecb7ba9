"""A Linear whose weight is stored in GGUF's blocks of 32 numbers, Q8_0 or Q4_0, to the byte as GGUF has it.

Source: ggml-quants.c; docs/formats.md 6, docs/compression.md 4.
"""

from typing import Literal

import torch
from torch import Tensor

from puna.arch.rounding import BLOCK_BYTES, BLOCK_NUMBERS
from puna.errors import UsageError
from puna.model.block_quantization import dequantize_blocks, quantize_blocks
from puna.model.linears.dequantised import DequantisedLinear

__all__ = ["BlockLinear", "BlockName"]

BlockName = Literal["q8_0", "q4_0"]


class BlockLinear(DequantisedLinear):
    """Codes (d_out, bytes of a row) as a buffer, each block with its scale inside."""

    codes: Tensor

    def __init__(self, codes: Tensor, name: BlockName) -> None:
        super().__init__()
        self.name = name
        self.out_features, self.in_features = len(codes), codes.shape[1] // BLOCK_BYTES[name] * BLOCK_NUMBERS
        self.register_buffer("codes", codes)

    def scales(self) -> Tensor:
        """What each block's codes are multiplied by, float16 (d_out, blocks of a row)."""
        blocks = self.codes.unflatten(1, (-1, BLOCK_BYTES[self.name]))
        return blocks[..., :2].contiguous().view(torch.float16).squeeze(-1)

    def widen(self, dtype: torch.dtype, *stored: Tensor) -> Tensor:
        """The weight (d_out, d_in) in a type."""
        return dequantize_blocks(self.name.upper(), *stored).to(dtype)

    @classmethod
    def from_dense(cls, weight_oi: Tensor, name: BlockName) -> "BlockLinear":
        """Round a weight of any float type. Errors: UsageError: rows that are no whole number of blocks."""
        if weight_oi.shape[1] % BLOCK_NUMBERS:
            raise UsageError(
                f"{name}: expected rows of a multiple of {BLOCK_NUMBERS} numbers, got {weight_oi.shape[1]}",
                "int8 and nf4 take any width",
            )
        return cls(quantize_blocks(name.upper(), weight_oi.detach()), name)
