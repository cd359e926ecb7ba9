"""`puna weights show`: what a checkpoint is. Reads headers only and imports no torch, so it answers at once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puna.arch.config import ModelConfig
from puna.arch.modules import HEAD, linear_shapes, parameter_count
from puna.arch.presets import PRESETS
from puna.weights.headers import read_header
from puna.weights.meta import MetaSettings
from puna.weights.names import LinearEntry

__all__ = ["ShowResult", "TensorRow", "show"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """One stored tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowResult:
    """What `puna weights show --json` prints; the formats config and preset have no tensors.

    linears: how many of the blocks' Linears are of each kind. compression: how the model was made smaller, where recorded.
    """

    format: str
    config: dict[str, Any]
    parameters: int
    linears: dict[str, int]
    compression: dict[str, Any] | None
    tensors: tuple[TensorRow, ...]
    notices: tuple[str, ...]


def show(path: str | Path, meta: MetaSettings | None = None) -> ShowResult:
    """Read a preset, a config.json, or a checkpoint of any format. Errors: FormatError."""
    if str(path) in PRESETS and not Path(path).exists():
        config = PRESETS[str(path)].config
        parameters = parameter_count(config)
        return ShowResult(
            format="preset", config=asdict(config), parameters=parameters, linears=_kinds(config, ()), compression=None,
            tensors=(), notices=(),
        )  # fmt: skip
    header = read_header(Path(path), meta)
    (meta or MetaSettings()).check_used(header.format)
    rows = (TensorRow(name=t.name, dtype=t.dtype, shape=t.shape, bytes=t.bytes) for t in header.tensors)
    return ShowResult(
        format=header.format,
        config=asdict(header.config),
        parameters=header.parameters,
        linears=_kinds(header.config, header.stored.linears),
        compression=None if header.stored.compression is None else dict(header.stored.compression),
        tensors=tuple(rows),
        notices=header.stored.notices,
    )


def _kinds(config: ModelConfig, linears: Sequence[LinearEntry]) -> dict[str, int]:
    """How many Linears are of each kind; what is not listed is dense."""
    kinds: Counter[str] = Counter(entry.kind for entry in linears for path in entry.paths if path != HEAD)
    dense = config.n_layers * len(linear_shapes(config)) - kinds.total()
    return {"dense": dense, **kinds} if dense else dict(kinds)
