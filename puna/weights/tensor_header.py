"""What every format says of one tensor: its name, its type, its shape, and where its bytes stand."""

from dataclasses import dataclass

__all__ = ["BLOCKS", "FLOATS", "TensorHeader"]

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
BLOCKS = frozenset({"Q8_0", "Q4_0", "Q4_K", "Q6_K"})  # GGUF's types of several numbers to a block


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """One stored tensor: `bytes` of them stand at `offset` in the file of that name, row-major, last axis innermost."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str
    offset: int
