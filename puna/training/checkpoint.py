"""Checkpoints: everything a resume needs, written whole or not at all, and refused after any change.

A step's folder holds `state.safetensors` (trained parameters, optimizer moments, random state) and `state.json`
(counters), sealed by a manifest. The latest is computed, never pointed to: the highest step whose manifest verifies.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from puna.errors import CheckpointMismatch, UsageError
from puna.files import read_json, remove_folder, staged_folder, verify_folder, write_json
from puna.training.config import Done
from puna.training.optimizer import trainable

__all__ = ["TrainState", "latest_checkpoint", "load_checkpoint", "prune_checkpoints", "save_checkpoint"]

_NAME = re.compile(r"step_(\d{6,})")
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """The counters of a run; the order of data is a function of `steps` alone."""

    done: Done = field(default_factory=Done)
    first_nats: float | None = None
    last_nats: float | None = None
    validation_nats: float | None = None
    best_validation_nats: float | None = None
    best_step: int | None = None
    metrics_bytes: int = 0


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer, state: TrainState, record: Mapping[str, object]
) -> Path:
    """Write `folder/step_NNNNNN`; return its path. Errors: DiskFull; earlier checkpoints are untouched."""
    final = folder / f"step_{state.done.steps:06d}"
    record = {**record, "step": state.done.steps, "torch": torch.__version__, "threads": torch.get_num_threads()}
    with staged_folder(final, record) as temporary:
        save_file(_tensors(model, optimizer), temporary / "state.safetensors")
        write_json(temporary / "state.json", asdict(state))
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The highest step whose manifest verifies, or None."""
    for path in reversed(_steps(folder)):
        try:
            verify_folder(path)
        except (CheckpointMismatch, UsageError):
            continue
        return path
    return None


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> TrainState:
    """Put a checkpoint's tensors into the model and its optimizer. Errors: CheckpointMismatch naming the tensor."""
    verify_folder(path)
    tensors = load_file(path / "state.safetensors")
    weights = trainable(model)
    expected = {name for weight in weights for name in _names(weight)} | {"random.cpu"}
    for name in sorted(expected ^ tensors.keys()):
        problem = "missing from the checkpoint" if name in expected else "unknown to this model"
        raise CheckpointMismatch(f"{path}: {name} is {problem}", "resume with the recipe that the run was started with")
    for name, weight in weights.items():
        stored, *moments = (tensors[key] for key in _names(name))
        if stored.shape != weight.shape:
            raise CheckpointMismatch(f"{path}: {name}: expected {tuple(weight.shape)}, got {tuple(stored.shape)}")
        weight.data.copy_(stored)
        optimizer.state[weight] = {key: moment.to(weight.device) for key, moment in zip(_MOMENTS, moments, strict=True)}
    torch.set_rng_state(tensors["random.cpu"])
    counters = read_json(path / "state.json")
    return TrainState(**{**counters, "done": Done(**counters["done"])})


def prune_checkpoints(folder: Path, keep: int, best_step: int | None = None) -> None:
    """Remove all but the last `keep` steps and the best one."""
    for path in _steps(folder)[:-keep]:
        if path.name != f"step_{-1 if best_step is None else best_step:06d}":
            remove_folder(path)


def _steps(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def _names(weight: str) -> list[str]:
    return [f"weight.{weight}", *(f"{moment}.{weight}" for moment in _MOMENTS)]


def _tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    tensors = {"random.cpu": torch.get_rng_state()}
    for name, weight in trainable(model).items():
        moments = optimizer.state[weight]
        values = (weight.detach(), *(moments[key] for key in _MOMENTS))
        tensors.update(zip(_names(name), (value.cpu().contiguous() for value in values), strict=True))
    return tensors
