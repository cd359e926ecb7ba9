"""What every format says of one tensor: its name, its type, its shape, and where its bytes stand."""

from dataclasses import dataclass

__all__ = ["FLOATS", "TensorHeader"]

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHeader:
    """One stored tensor: `bytes` of them stand at `offset` in the file of that name, row-major, last axis innermost."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str
    offset: int
