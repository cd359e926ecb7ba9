"""What a checkpoint is, whatever its format: its configuration and the headers of its tensors.

Every reader returns this value, checked against itself: nothing missing, nothing left over, every shape as the model has
it. Format: docs/formats.md 0.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.arch.config import ModelConfig
from puna.arch.modules import parameter_count
from puna.errors import FormatError
from puna.weights.names import ExpectedTensor, Format, LinearEntry, expected_tensors
from puna.weights.tensor_header import TensorHeader

__all__ = ["CheckpointConfig", "CheckpointHeader", "check_tensor", "file_inside"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """The model, its special ids, and `linears`: what is not stored as one dense matrix; embedding_rank: of a factored table.

    dtype: the file's own word. compression: how and from what the model was made smaller, where that is recorded.
    """

    format: Format
    model: ModelConfig
    linears: tuple[LinearEntry, ...]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    dtype: str | None
    notices: tuple[str, ...]
    pad_id: int | None = None
    compression: Mapping[str, Any] | None = None
    embedding_rank: int | None = None

    def expected(self) -> Iterator[ExpectedTensor]:
        """Every tensor that there must be, in model order."""
        return expected_tensors(self.model, self.linears, self.embedding_rank, kind=self.format)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHeader:
    """A checkpoint's configuration and tensors; a bare config.json has no tensors.

    Attributes: path: the folder, or the file of a GGUF or a bare config.json. metadata: a GGUF's own, else empty.
    """

    path: Path
    stored: CheckpointConfig
    tensors: tuple[TensorHeader, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        """The model."""
        return self.stored.model

    @property
    def format(self) -> str:
        """`hf`: a plain Llama; `puna`: one with other Linears; `meta`; `gguf`; `config`: no weights."""
        return self.stored.format if self.tensors else "config"

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that hold the tensors."""
        return tuple(sorted({tensor.file for tensor in self.tensors}))

    @property
    def parameters(self) -> int:
        """Numbers that the model holds (codes and factors as they are)."""
        if not self.stored.linears and self.stored.embedding_rank is None:
            return parameter_count(self.config)
        return sum(math.prod(expected.shape) for expected in self.expected())

    def expected(self) -> list[ExpectedTensor]:
        """Where each tensor goes. Duplicates of a tied head and other left-overs have no place."""
        return list(self.stored.expected())


def check_tensor(place: Path, expected: ExpectedTensor, tensor: TensorHeader | None) -> None:
    """Compare a stored tensor with what the model needs. Errors: FormatError naming it."""
    if tensor is None:
        raise FormatError(place, expected.name, f"a tensor {expected.shape}", "nothing")
    if tensor.shape != expected.shape or tensor.dtype not in expected.dtypes:
        wanted = f"{expected.shape} of {' or '.join(sorted(expected.dtypes))}"
        raise FormatError(place, expected.name, wanted, f"{tensor.shape} of {tensor.dtype}")


def file_inside(folder: Path, name: str) -> Path:
    """The path of a file in the folder. Errors: FormatError: a link that leads out of it."""
    path = folder / name
    real = Path(os.path.realpath(path))  # Path.resolve raises where links go in a circle
    if real.parent != Path(os.path.realpath(folder)):
        raise FormatError(path, "file", f"a file inside {folder}", real, "copy the file into the folder")
    return path
