"""A run's folder: recipe.toml, metrics.jsonl, checkpoints/, the result (model/ or adapter/), report.html."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.optim import Optimizer

from puna.errors import CheckpointMismatch, DiskFull, Interrupted, PunaError, UsageError
from puna.files import MANIFEST, LineLog, lock_folder, remove_folder, sha256_file, sweep_stale, write_text
from puna.jobs.peak import PeakMemory
from puna.jobs.recipe import dump_recipe
from puna.jobs.signals import stop_request
from puna.model.llama import Llama
from puna.training.activations import checkpointed_blocks
from puna.training.batches import BatchSource
from puna.training.checkpoint import (
    TrainState,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from puna.training.config import TrainingConfig
from puna.training.loop import (
    BadStepEvent,
    Event,
    LoopHooks,
    Observer,
    StepEvent,
    ValidationEvent,
    run_loop,
)
from puna.training.optimizer import build_optimizer

__all__ = ["RunFolder", "check_replaceable", "open_run", "refuse_foreign", "run_training"]

_SAVES_MAY_FAIL = 2
_EVENTS = {StepEvent: "step", ValidationEvent: "validation", BadStepEvent: "bad_step"}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where each part of a run lies."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved settings."""
        return self.path / "recipe.toml"

    @property
    def metrics(self) -> Path:
        """One JSON line for each event."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One sealed folder for each saved step."""
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"


@contextmanager
def open_run(path: Path, recipe: object, *, resume: bool) -> Iterator[RunFolder]:
    """Lock the folder, clear what a killed run left unfinished, and record the recipe.

    Errors: RunLocked; UsageError where a run is already there and `resume` is off, or something that is no run;
            CheckpointMismatch where the recipe on disk is another one.
    """
    folder, text = RunFolder(path), dump_recipe(recipe)
    refuse_foreign(path)
    with lock_folder(path):
        sweep_stale(path)
        sweep_stale(folder.checkpoints)
        if folder.recipe.exists():
            if not resume:
                raise UsageError(f"{path} already holds a run", "continue it with --resume, or choose another --out")
            if folder.recipe.read_text(encoding="utf-8") != text:
                raise CheckpointMismatch(
                    f"{folder.recipe}: another recipe", "resume without changed settings, or choose another folder"
                )
        else:
            write_text(folder.recipe, text)
        try:
            yield folder
        except PunaError as error:
            if not isinstance(error, Interrupted):
                _forget(folder)
            raise


def check_replaceable(path: Path) -> None:
    """Refuse to put a result where something stands that puna did not write. Errors: UsageError."""
    old = path.with_name(f"{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)  # a killed process left it between two renames
    is_ours = path.is_dir() and ((path / MANIFEST).exists() or not any(path.iterdir()))
    if path.exists() and not is_ours:
        raise UsageError(f"{path} holds something else", "choose another --out, or empty it first")


def run_training(
    folder: RunFolder,
    model: Llama,
    config: TrainingConfig,
    source: BatchSource,
    validate: Callable[[], float],
    observers: tuple[Observer, ...] = (),
    *,
    peak: PeakMemory,
    data: str,
) -> TrainState:
    """Continue from the latest checkpoint, or start; train to the end of the budget; return the last state.

    Args:   data: a digest of what is learned from; a checkpoint goes on with no other.
    Errors: Interrupted after saving, when a signal asked to stop; NonFiniteLoss; DiskFull after three failed saves.
    """
    optimizer = build_optimizer(model, config)
    recipe = f"{sha256_file(folder.recipe)} on {data}"
    torch.manual_seed(config.seed)  # whatever may draw from it later; a checkpoint brings its own state
    state = _last_saved(folder, model, optimizer, recipe) or TrainState()
    failures = 0

    def save(state: TrainState) -> None:
        nonlocal failures
        try:
            state = replace(state, metrics_bytes=log.sync(), peak_bytes=max(state.peak_bytes, peak.growth_bytes()))
            save_checkpoint(folder.checkpoints, model, optimizer, state, {"recipe": recipe})
            prune_checkpoints(folder.checkpoints, config.keep_checkpoints, state.best_step)
            failures = 0
        except DiskFull as error:
            failures += 1
            is_last = bool(stop) or config.budget.progress(state.done) >= 1
            if is_last or failures > _SAVES_MAY_FAIL:
                raise
            log.append({"event": "save_failed", "step": state.done.steps, "message": error.message})

    def restore() -> TrainState | None:
        restored = _last_saved(folder, model, optimizer, recipe)
        if restored is not None:
            log.cut_back(restored.metrics_bytes)
        return restored

    with (
        closing(LineLog(folder.metrics, state.metrics_bytes)) as log,
        stop_request() as stop,
        checkpointed_blocks(model, is_on=config.checkpoint_activations),
    ):
        hooks = LoopHooks(validate=validate, save=save, should_stop=lambda: bool(stop), restore=restore)
        state = run_loop(model, optimizer, source, config, state, hooks, (*observers, _metrics(log)))
    stop.raise_if_asked(f"step {state.done.steps} in {folder.path}")
    return replace(state, peak_bytes=max(state.peak_bytes, peak.growth_bytes()))


def _last_saved(folder: RunFolder, model: Llama, optimizer: Optimizer, recipe: str) -> TrainState | None:
    """Put the latest checkpoint into model and optimizer. Errors: CheckpointMismatch."""
    latest = latest_checkpoint(folder.checkpoints)
    return None if latest is None else load_checkpoint(latest, model, optimizer, recipe)


def refuse_foreign(path: Path) -> None:
    """A folder with anything in it that no run leaves behind is not ours to sweep. Errors: UsageError."""
    folder = RunFolder(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is not a folder", "choose another --out")
    if path.exists() and not folder.recipe.exists():
        for entry in path.iterdir():
            if not (entry.name == ".lock" or entry.name.startswith(f"{folder.recipe.name}.tmp-")):
                raise UsageError(f"{path} holds no run, but {entry.name}", "choose another --out")


def _forget(folder: RunFolder) -> None:
    """Take back the record of a run that failed before it saved anything: the mended command may use the folder."""
    if {entry.name for entry in folder.path.iterdir()} <= {".lock", folder.recipe.name, folder.metrics.name}:
        remove_folder(folder.recipe)
        remove_folder(folder.metrics)


def _metrics(log: LineLog) -> Observer:
    def write(event: Event) -> None:
        log.append({"event": _EVENTS[type(event)], **asdict(event)})

    return write
