"""`puna weights show`: what a checkpoint is. Reads headers only and imports no torch, so it answers at once."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puna.arch.modules import parameter_count
from puna.arch.presets import PRESETS
from puna.weights.headers import read_header
from puna.weights.meta import MetaSettings

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
    """What `puna weights show --json` prints; the formats config and preset have no tensors."""

    format: str
    config: dict[str, Any]
    parameters: int
    tensors: tuple[TensorRow, ...]
    notices: tuple[str, ...]


def show(path: str | Path, meta: MetaSettings | None = None) -> ShowResult:
    """Read a preset, a config.json, or a checkpoint of any format. Errors: FormatError."""
    if str(path) in PRESETS and not Path(path).exists():
        config = PRESETS[str(path)].config
        parameters = parameter_count(config)
        return ShowResult(format="preset", config=asdict(config), parameters=parameters, tensors=(), notices=())
    header = read_header(Path(path), meta)
    (meta or MetaSettings()).check_used(header.format)
    rows = (TensorRow(name=t.name, dtype=t.dtype, shape=t.shape, bytes=t.bytes) for t in header.tensors)
    return ShowResult(
        format=header.format,
        config=asdict(header.config),
        parameters=header.parameters,
        tensors=tuple(rows),
        notices=header.stored.notices,
    )
