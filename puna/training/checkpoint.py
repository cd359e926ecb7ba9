"""Checkpoints: everything a resume needs, written whole or not at all, and refused after any change.

A step's folder holds `state.safetensors` (trained parameters, optimizer moments, what a BatchNorm measured, random state) and
`state.json` (counters), sealed by a manifest. The latest is computed, never pointed to: the highest step whose manifest verifies.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from puna.errors import CheckpointMismatch, DiskFull, FormatError
from puna.files import free_bytes, read_json, remove_folder, staged_folder, verify_folder, write_json
from puna.model.norms import running_statistics
from puna.training.config import Done
from puna.training.optimizer import moment_names, trainable

__all__ = [
    "TrainState",
    "latest_checkpoint",
    "load_checkpoint",
    "load_weights",
    "machine_record",
    "prune_checkpoints",
    "save_checkpoint",
    "step_folder",
]

_NAME = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """The counters of a run; the order of data is a function of `done.steps` alone.

    peak_bytes: the largest growth of memory in any sitting.
    passed_over: steps' worth of data that were read and not learned from. bad_steps: of those, the bad numbers.
    loss_scale, good_steps: of training in float16.
    best_step: of the steps that were saved, the one with the lowest nats on held-out text.
    """

    done: Done = field(default_factory=Done)
    first_nats: float | None = None
    last_nats: float | None = None
    validation_nats: float | None = None
    best_validation_nats: float | None = None
    best_step: int | None = None
    metrics_bytes: int = 0
    peak_bytes: int = 0
    passed_over: int = 0
    bad_steps: int = 0
    bad_since_save: int = 0
    loss_scale: float = 65536.0
    good_steps: int = 0

    @property
    def batches_read(self) -> int:
        """Which step's data come next, counted from 0."""
        return self.done.steps + self.passed_over


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer, state: TrainState, record: Mapping[str, object]
) -> Path:
    """Write `folder/step_NNNNNN`; return its path. Errors: DiskFull; earlier checkpoints are untouched."""
    final = folder / _name(state.done.steps)
    record = {**record, "step": state.done.steps, **machine_record()}
    with staged_folder(final, record) as temporary:
        _write_tensors(temporary / "state.safetensors", _tensors(model, optimizer))
        write_json(temporary / "state.json", asdict(state))
    return final


def machine_record() -> dict[str, str | int]:
    """What the bits of a run depend on beside its recipe and its data."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def latest_checkpoint(folder: Path, every: int = 1) -> Path | None:
    """The highest step whose manifest verifies, of the multiples of `every`; None where no such step was saved.

    Errors: CheckpointMismatch where steps were saved and every one of them is damaged.
    """
    damaged = None
    for path in reversed(_steps(folder, every)):
        try:
            verify_folder(path)
        except (CheckpointMismatch, FormatError) as error:
            damaged = error
            continue
        return path
    if damaged is not None:
        hint = f"restore a step, or remove {folder} to train from the beginning"
        raise CheckpointMismatch(f"every checkpoint is damaged; the first: {damaged.message}", hint)
    return None


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    accept: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> TrainState:
    """Put a checkpoint's tensors into the model and its optimizer.

    Args:   accept: given the checkpoint's record, raises where this run may not go on from it.
    Errors: CheckpointMismatch naming the tensor, FormatError, what `accept` raises; model and optimizer are then unchanged.
    """
    hint = "resume with the recipe and the data that the run was started with"
    accept(verify_folder(path))
    tensors, weights = load_file(path / "state.safetensors"), trainable(model)
    expected = _forms(weights, optimizer)
    expected |= {f"measured.{name}": _form(measured) for name, measured in running_statistics(model).items()}
    for name in sorted(expected.keys() ^ tensors.keys()):
        problem = "missing from the checkpoint" if name in expected else "unknown to this model"
        raise CheckpointMismatch(f"{path}: {name} is {problem}", hint)
    for name, form in expected.items():
        if form != (got := _form(tensors[name])):
            raise CheckpointMismatch(f"{path}: {name}: expected {form}, got {got}", hint)
    for name, weight in weights.items():
        weight.data.copy_(tensors[f"weight.{name}"])
        keys = moment_names(optimizer, weight)
        optimizer.state[weight] = {key: tensors[f"{key}.{name}"].to(weight.device) for key in keys}
    _restore_statistics(model, tensors)
    torch.set_rng_state(tensors["random.cpu"])
    counters = read_json(path / "state.json")
    return TrainState(**{**counters, "done": Done(**counters["done"])})


def load_weights(path: Path, model: nn.Module) -> None:
    """Put a checkpoint's trained parameters into the model, and nothing else. Errors: CheckpointMismatch, FormatError."""
    verify_folder(path)
    tensors = load_file(path / "state.safetensors")
    for name, weight in trainable(model).items():
        weight.data.copy_(tensors[f"weight.{name}"])
    _restore_statistics(model, tensors)


def step_folder(folder: Path, step: int) -> Path:
    """Where a step's checkpoint is."""
    return folder / _name(step)


def prune_checkpoints(folder: Path, keep: int, best_step: int | None = None, every: int = 1) -> None:
    """Remove all but the last `keep` steps, the best one and the last multiple of `every`, to which a rollback goes.

    What cannot be removed stays until the next time.
    """
    kept = {*_steps(folder)[-keep:], *_steps(folder, every)[-1:]}
    for path in _steps(folder):
        if path not in kept and (best_step is None or path.name != _name(best_step)):
            with suppress(OSError):
                remove_folder(path)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # it hides the system's error number; these tensors can only fail on the disk
        raise DiskFull(
            f"{path}: {error}; {free_bytes(path):,} bytes are free", "free some space; earlier steps are untouched"
        ) from None


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _steps(folder: Path, every: int = 1) -> list[Path]:
    found = [path for path in folder.glob("step_*") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted((path for path in found if _step(path) % every == 0), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _forms(weights: Mapping[str, nn.Parameter], optimizer: Optimizer) -> dict[str, str]:
    """Type and shape of everything a checkpoint of these weights holds."""
    forms = {"random.cpu": _form(torch.get_rng_state())}
    for name, weight in weights.items():
        forms[f"weight.{name}"] = _form(weight)
        for key in moment_names(optimizer, weight):
            forms[f"{key}.{name}"] = _form(torch.zeros(()) if key == "step" else weight)
    return forms


def _tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    tensors = {"random.cpu": torch.get_rng_state()}
    for name, weight in trainable(model).items():
        tensors[f"weight.{name}"] = weight.detach().cpu().contiguous()
        for key in moment_names(optimizer, weight):
            tensors[f"{key}.{name}"] = optimizer.state[weight][key].cpu().contiguous()
    for name, measured in running_statistics(model).items():
        tensors[f"measured.{name}"] = measured.cpu().contiguous()
    return tensors


def _restore_statistics(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, measured in running_statistics(model).items():
        measured.copy_(tensors[f"measured.{name}"])
