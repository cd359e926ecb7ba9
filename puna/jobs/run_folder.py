"""A run's folder: recipe.toml, metrics.jsonl, checkpoints/, the result (model/ or adapter/), report.html."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from puna.errors import DiskFull, Interrupted, PunaError, UsageError
from puna.files import REPLACED, LineLog, is_sealed, lock_folder, remove_folder, sweep_stale, write_text
from puna.jobs.peak import PeakMemory
from puna.jobs.recipe import dump_recipe
from puna.jobs.resuming import check_recipe, check_record, other_machine
from puna.jobs.signals import StopRequest, stop_request
from puna.jobs.tensorboard import event_files
from puna.model.llama import Llama
from puna.training.activations import checkpointed_blocks
from puna.training.batches import BatchSource
from puna.training.checkpoint import (
    TrainState,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
    step_folder,
)
from puna.training.config import TrainingConfig
from puna.training.events import (
    BadStepEvent,
    Event,
    HeldOut,
    NoticeEvent,
    Observer,
    SampleEvent,
    StepEvent,
    ValidationEvent,
    tell,
)
from puna.training.loop import LoopHooks, is_finished, run_loop
from puna.training.optimizer import build_optimizer
from puna.training.step import Loss, batch_nats

__all__ = ["RunFolder", "check_replaceable", "open_run", "refuse_foreign", "run_training", "take_best"]

_SAVES_MAY_FAIL = 2
_EVENTS = {
    StepEvent: "step",
    ValidationEvent: "validation",
    SampleEvent: "sample",
    BadStepEvent: "bad_step",
    NoticeEvent: "notice",
}


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
    def tensorboard(self) -> Path:
        """Event files, where tensorboard is installed."""
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"


@contextmanager
def open_run(path: Path, recipe: object, *, resume: bool) -> Iterator[RunFolder]:
    """Lock the folder, clear what a killed run left unfinished, and record the recipe.

    Errors: RunLocked; UsageError where a run is already there and `resume` is off, or something that is no run;
            CheckpointMismatch where the recipe on disk differs in more than may change (puna/jobs/resuming.py).
    """
    folder, text = RunFolder(path), dump_recipe(recipe)
    refuse_foreign(path)
    with lock_folder(path):
        sweep_stale(path)
        sweep_stale(folder.checkpoints)
        if folder.recipe.exists():
            if not resume:
                raise UsageError(f"{path} already holds a run", "continue it with --resume, or choose another --out")
            is_new = check_recipe(folder.recipe, folder.recipe.read_text(encoding="utf-8"), text)
        else:
            is_new = True
        if is_new:
            write_text(folder.recipe, text)
        try:
            yield folder
        except PunaError as error:
            if not isinstance(error, Interrupted):
                _forget(folder)
            raise


def check_replaceable(path: Path) -> None:
    """Refuse to put a result where something stands that puna did not write. Errors: UsageError."""
    if not path.name:
        raise UsageError(f"{path}: expected a place with a name", "name a folder of its own, such as out")
    old = path.with_name(path.name + REPLACED)
    if old.exists() and not path.exists():
        old.rename(path)  # a killed process left it between two renames
    is_ours = path.is_dir() and (not any(path.iterdir()) or is_sealed(path))
    if path.exists() and not is_ours:
        raise UsageError(f"{path} holds something else", "choose another --out, or empty it first")


def run_training(
    folder: RunFolder,
    model: Llama,
    config: TrainingConfig,
    source: BatchSource,
    validate: Callable[[], HeldOut],
    observers: tuple[Observer, ...] = (),
    *,
    peak: PeakMemory,
    data: Mapping[str, str],
    show: Callable[[TrainState, bool], None],
    sample: Callable[[int], SampleEvent] | None = None,
    loss: Loss = batch_nats,
    tensorboard: bool | None = None,
) -> TrainState:
    """Continue from the latest checkpoint, or start; train to the end of the budget; return the last state.

    Args:   data: the digest of each source that is learned from, by its name; a checkpoint goes on with no other.
            show: write the page of a run that is not done, given what was saved and whether it stops there.
            loss: what is learned of a batch.
            tensorboard: whether to write event files; None: where tensorboard is installed.
    Errors: MissingExtra; Interrupted after saving, when a signal asked to stop; NonFiniteLoss; DiskFull after three failed saves.
    """
    optimizer = build_optimizer(model, config)
    record = {"recipe": folder.recipe.read_text(encoding="utf-8"), "data": dict(data)}
    notices: list[str] = []
    torch.manual_seed(config.seed)  # whatever may draw from it later; a checkpoint brings its own state
    state = _last_saved(folder.checkpoints, model, optimizer, record, notices) or TrainState()
    with (
        closing(LineLog(folder.metrics, state.metrics_bytes)) as log,
        event_files(folder.tensorboard, tensorboard) as boards,
        stop_request() as stop,
        checkpointed_blocks(model, is_on=config.checkpoint_activations),
    ):
        everyone = (*observers, _metrics(log), *boards)
        saves = _Saves(
            folder=folder.checkpoints, model=model, optimizer=optimizer, config=config, record=record, log=log, peak=peak,
            stop=stop, show=show, notify=partial(tell, everyone),
        )  # fmt: skip
        hooks = LoopHooks(
            validate=validate, save=saves, should_stop=lambda: bool(stop), should_save=stop.take_save,
            restore=saves.restore, sample=sample, loss=loss,
        )  # fmt: skip
        for message in notices:
            saves.notify(NoticeEvent(step=state.done.steps, message=message))
        state = run_loop(model, optimizer, source, config, state, hooks, everyone)
    saves.raise_if_stopped(state)
    saves.prune(state)  # of a run that was killed after its last save
    return replace(state, peak_bytes=max(state.peak_bytes, peak.growth_bytes()))


def take_best(folder: RunFolder, model: Llama, state: TrainState) -> tuple[int, float]:
    """Put the weights of the best step that was saved into the model. Returns: that step, and its held-out nats."""
    assert state.best_step is not None
    assert state.best_validation_nats is not None
    if state.best_step != state.done.steps:
        load_weights(step_folder(folder.checkpoints, state.best_step), model)
    return state.best_step, state.best_validation_nats


def _last_saved(
    folder: Path, model: Llama, optimizer: Optimizer, record: Mapping[str, Any], notices: list[str], every: int = 1
) -> TrainState | None:
    """Put the latest checkpoint, of the multiples of `every`, into model and optimizer; add to the notices.

    Errors: CheckpointMismatch.
    """
    latest = latest_checkpoint(folder, every)
    if latest is None:
        return None

    def accept(saved: Mapping[str, Any]) -> None:
        check_record(latest, saved, record["recipe"], record["data"])
        notices.extend(filter(None, [other_machine(saved)]))

    return load_checkpoint(latest, model, optimizer, accept)


@dataclass(kw_only=True)
class _Saves:
    """Saves a run's states, each followed by the page that shows it, and outlives a full disk twice in a row."""

    folder: Path
    model: Llama
    optimizer: Optimizer
    config: TrainingConfig
    record: Mapping[str, Any]
    log: LineLog
    peak: PeakMemory
    stop: StopRequest
    show: Callable[[TrainState, bool], None]
    notify: Observer
    failures: int = 0

    def __call__(self, state: TrainState) -> None:
        """Save a state. Errors: DiskFull the third time in a row, or where no further save would come."""
        is_done, log, peak = is_finished(state, self.config), self.log, self.peak
        try:
            state = replace(state, metrics_bytes=log.sync(), peak_bytes=max(state.peak_bytes, peak.growth_bytes()))
            save_checkpoint(self.folder, self.model, self.optimizer, state, self.record)
            self.prune(state)
            self.failures = 0
        except DiskFull as error:
            self.failures += 1
            if is_done or self.stop or self.failures > _SAVES_MAY_FAIL:
                raise
            self.notify(NoticeEvent(step=state.done.steps, message=f"not saved: {error.message}"))
            return
        if not is_done:
            with peak.paused(), suppress(DiskFull):  # the page is a convenience; the job writes the last one
                self.show(state, bool(self.stop))

    def prune(self, state: TrainState) -> None:
        """Remove what the recipe does not keep."""
        prune_checkpoints(self.folder, self.config.keep_checkpoints, state.best_step, self.config.checkpoint_every)

    def restore(self) -> TrainState | None:
        """Put the last planned checkpoint back: a save that a signal asked for changes nothing of where a run goes."""
        every = self.config.checkpoint_every
        state = _last_saved(self.folder, self.model, self.optimizer, self.record, [], every)
        if state is not None:
            self.log.cut_back(state.metrics_bytes, keep=lambda event: event["event"] == _EVENTS[BadStepEvent])
        return state

    def raise_if_stopped(self, state: TrainState) -> None:
        """Errors: Interrupted, saying what is saved; DiskFull where the last save failed."""
        if self.stop and self.failures:
            raise DiskFull(f"step {state.done.steps} found no room in {self.folder}", "free some space, then --resume")
        place = self.folder.parent
        if state.done.steps == 0:
            self.stop.raise_if_asked(f"nothing was learned yet in {place}", "--resume begins with the first step")
        self.stop.raise_if_asked(f"saved step {state.done.steps} in {place}")


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
    records = (folder.recipe, folder.metrics, folder.tensorboard)
    if {entry.name for entry in folder.path.iterdir()} <= {".lock", *(path.name for path in records)}:
        for path in records:
            remove_folder(path)


def _metrics(log: LineLog) -> Observer:
    def write(event: Event) -> None:
        log.append({"event": _EVENTS[type(event)], **asdict(event)})

    return write
