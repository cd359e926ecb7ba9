"""A run's folder: recipe.toml, metrics.jsonl, checkpoints/, the result (model/ or adapter/), report.html."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from puna.errors import CheckpointMismatch, DiskFull, UsageError
from puna.files import LineLog, lock_folder, sweep_stale, write_text
from puna.jobs.recipe import dump_recipe
from puna.jobs.signals import stop_request
from puna.model.llama import Llama
from puna.training.batches import BatchSource
from puna.training.checkpoint import (
    TrainState,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from puna.training.config import TrainingConfig
from puna.training.loop import Event, LoopHooks, Observer, StepEvent, run_loop
from puna.training.optimizer import build_optimizer

__all__ = ["RunFolder", "open_run", "run_training"]

_SAVES_MAY_FAIL = 2


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

    Errors: RunLocked; UsageError where a run is already there and `resume` is off; CheckpointMismatch where the
    recipe on disk is another one.
    """
    folder, text = RunFolder(path), dump_recipe(recipe)
    with lock_folder(path):
        sweep_stale(path)
        sweep_stale(folder.checkpoints)
        if folder.recipe.exists():
            if not resume:
                raise UsageError(f"{path} already holds a run", "continue it with --resume, or choose another --out")
            if folder.recipe.read_text(encoding="utf-8") != text:
                raise CheckpointMismatch(f"{folder.recipe}: another recipe", "resume without changed settings")
        else:
            write_text(folder.recipe, text)
        yield folder


def run_training(
    folder: RunFolder,
    model: Llama,
    config: TrainingConfig,
    source: BatchSource,
    validate: Callable[[], float],
    observers: tuple[Observer, ...] = (),
) -> TrainState:
    """Continue from the latest checkpoint, or start; train to the end of the budget; return the last state.

    Errors: Interrupted after saving, when a signal asked to stop; NonFiniteLoss; DiskFull after three failed saves.
    """
    optimizer = build_optimizer(model, config)
    latest = latest_checkpoint(folder.checkpoints)
    state = TrainState() if latest is None else load_checkpoint(latest, model, optimizer)
    log = LineLog(folder.metrics, state.metrics_bytes)
    failures = 0

    def save(state: TrainState) -> None:
        nonlocal failures
        try:
            state = replace(state, metrics_bytes=log.sync())
            save_checkpoint(folder.checkpoints, model, optimizer, state, {"recipe": folder.recipe.name})
            prune_checkpoints(folder.checkpoints, config.keep_checkpoints, state.best_step)
            failures = 0
        except DiskFull as error:
            failures += 1
            if failures > _SAVES_MAY_FAIL or config.budget.progress(state.done) >= 1:
                raise
            log.append({"event": "save_failed", "step": state.done.steps, "message": error.message})

    with stop_request() as stop:
        hooks = LoopHooks(validate=validate, save=save, should_stop=lambda: bool(stop))
        state = run_loop(model, optimizer, source, config, state, hooks, (*observers, _metrics(log)))
    log.close()
    if config.budget.progress(state.done) < 1:
        stop.raise_if_asked(f"step {state.done.steps} in {folder.path}")
    return state


def _metrics(log: LineLog) -> Observer:
    def write(event: Event) -> None:
        log.append({"event": "step" if isinstance(event, StepEvent) else "validation", **asdict(event)})

    return write
