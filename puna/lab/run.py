"""A study from beginning to end: text, schedule, every arm at every seed, verdicts, report. Stopped, the same command goes on.

rate of an arm = the best of the candidates on seed 0;   then seeds 1, 2, ... at that rate, on the same data as every arm
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from puna.errors import NonFiniteLoss
from puna.files import read_json, write_json, write_text
from puna.jobs.machine import choose_device
from puna.jobs.recipe import dump_recipe, read_recipe
from puna.jobs.resuming import check_data
from puna.jobs.run_folder import RunFolder, open_run
from puna.jobs.signals import StopRequest, stop_request
from puna.lab.arm_run import ArmRun, read_run, train_arm, training_config, write_run
from puna.lab.data import StudyText, study_text
from puna.lab.recipe import LabRecipe, base_model
from puna.lab.report import write_study_report
from puna.lab.result import StudyResult, judged_arms
from puna.lab.schedule import Schedule, find_schedule
from puna.lab.studies import find_study
from puna.lab.study import Arm, Study, build_arm
from puna.model.llama import Llama
from puna.report.labels import check_language
from puna.report.numbers import human_seconds
from puna.training.checkpoint import machine_record
from puna.training.events import Observer
from puna.weights.folder import save_folder

__all__ = ["StudyPlan", "TrialEvent", "plan_study", "plan_words", "run_study"]

_SCHEDULE, _RECORD = "schedule.json", "record.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEvent:
    """A training that begins: number of count, those of earlier sittings included."""

    number: int
    count: int
    arm: str
    rate: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """What `puna lab --dry-run --json` prints."""

    study: str
    arms: list[str]
    runs: int
    steps: int
    tokens: int
    seconds: float


def plan_study(recipe: LabRecipe, out: Path, device: str = "auto") -> StudyPlan:
    """How long a study will take; `out` keeps the text's shards and the recipe, which binds nobody yet. Errors: as run_study."""
    _take_back_a_plan(out, recipe)
    with open_run(out, recipe, resume=True):
        study, _, schedule = _found(recipe, out, choose_device(device))
    return _plan(study, recipe, schedule)


def plan_words(plan: StudyPlan, seeds: int) -> str:
    """The plan for people."""
    return (
        f"{plan.study}: {len(plan.arms)} arms, {plan.runs} trainings of {plan.steps:,} steps of "
        f"{plan.tokens // plan.steps:,} tokens, {seeds} seeds: about {human_seconds(plan.seconds)}"
    )


def run_study(
    recipe: LabRecipe,
    out: Path,
    *,
    device: str = "auto",
    observers: tuple[Observer, ...] = (),
    on_trial: Callable[[TrialEvent], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
    lang: str = "en",
) -> StudyResult:
    """Run what is missing of a study, judge it, and write `out`/report.html.

    Args:   observers: of every training; on_trial: of their succession; tell: is given how long it will take. lang: the report's.
    Errors: BadData, CheckpointMismatch, DiskFull, FormatError, Interrupted (finished trainings are kept), RunLocked, UsageError.
    """
    check_language(lang)
    place = choose_device(device)
    _take_back_a_plan(out, recipe)
    with open_run(out, recipe, resume=True) as folder, stop_request() as stop:
        study, text, schedule = _prepared(recipe, folder, place, tell)
        plan = _plan(study, recipe, schedule)
        tell(plan_words(plan, recipe.seeds))
        trials = _Trials(recipe, out, study, text, schedule, stop, place, observers, on_trial)
        base = trials.base()
        tried = {arm.name: trials.at_each_rate(arm) for arm in study.arms}
        runs = {arm.name: trials.at_each_seed(arm, tried[arm.name]) for arm in study.arms}
        result = StudyResult(
            study=study.name,
            arms=judged_arms(study, runs, tried, recipe, schedule.step_seconds, base),
            seeds=recipe.seeds,
            steps=schedule.steps,
            tokens=plan.tokens,
            text_bytes=text.bytes,
            text_sha256=text.sha256,
            seconds=trials.seconds,
            report=str(folder.report),
        )
        write_study_report(folder, study, result, runs, schedule.step_seconds, lang)
    return result


def _take_back_a_plan(out: Path, recipe: LabRecipe) -> None:
    """The recipe of a study that was only planned, or refused, gives way to the new one."""
    place = RunFolder(out).recipe
    if place.exists() and not (out / _SCHEDULE).exists() and "study" in read_recipe(place):
        write_text(place, dump_recipe(recipe))


def _prepared(
    recipe: LabRecipe, folder: RunFolder, device: torch.device, tell: Callable[[str], None]
) -> tuple[Study, StudyText, Schedule]:
    """The study, its text, and its schedule, which from now on holds.

    Errors: CheckpointMismatch: the text has changed since. UsageError: too little time.
    """
    out = folder.path
    study, text, schedule = _found(recipe, out, device)
    digests = {"the text": text.sha256}
    record = {**machine_record(), "device": device.type, "data": digests}
    if (out / _SCHEDULE).exists():
        before = read_json(out / _RECORD)
        check_data(out, before["data"], digests)
        if before != record:
            tell(f"notice: another machine or another number of threads than before: {before} became {record}")
    else:
        write_json(out / _RECORD, record)
        write_json(out / _SCHEDULE, asdict(schedule))
    return study, text, schedule


def _found(recipe: LabRecipe, out: Path, device: torch.device) -> tuple[Study, StudyText, Schedule]:
    study = find_study(recipe.study)(base_model(recipe, recipe.vocab_size))
    text = study_text(recipe, study, out)
    return study, text, find_schedule(out / _SCHEDULE, study, recipe, text, device)


def _plan(study: Study, recipe: LabRecipe, schedule: Schedule) -> StudyPlan:
    return StudyPlan(
        study=study.name,
        arms=[arm.name for arm in study.arms],
        runs=schedule.runs,
        steps=schedule.steps,
        tokens=schedule.steps * recipe.batch * recipe.seq,
        seconds=schedule.seconds,
    )


class _Trials:
    """Each training of a study, run or, where an earlier sitting finished it, read."""

    def __init__(
        self, recipe: LabRecipe, folder: Path, study: Study, text: StudyText, schedule: Schedule, stop: StopRequest,
        device: torch.device, observers: Sequence[Observer], on_trial: Callable[[TrialEvent], None],
    ) -> None:  # fmt: skip
        self._recipe, self._folder, self._study, self._text = recipe, folder, study, text
        self._schedule, self._stop, self._device = schedule, stop, device
        self._observers, self._on_trial = observers, on_trial
        self._number, self.seconds = 0, 0.0  # of training, over all sittings

    def base(self) -> ArmRun | None:
        """What adapters stand beside, trained once."""
        if (arm := self._study.base) is None:
            return None
        rate = self._recipe.rates(self._study)[0]
        if self._base is not None:
            return self._run(arm, rate, 0)
        model = build_arm(arm, 0, self._device)
        run = self._run(arm, rate, 0, model)
        if run.diverged is not None:
            raise NonFiniteLoss(f"the base of the adapters: {run.diverged}", "lower --learning-rate")
        save_folder(model, self._folder / "base")
        return run

    @property
    def _base(self) -> Path | None:
        place = self._folder / "base"
        return place if place.is_dir() else None

    def at_each_rate(self, arm: Arm) -> dict[float, ArmRun]:
        """Seed 0 at every candidate."""
        return {rate: self._run(arm, rate, 0) for rate in self._recipe.rates(self._study)}

    def at_each_seed(self, arm: Arm, tried: dict[float, ArmRun]) -> list[ArmRun]:
        """One run a seed, at the best rate of seed 0."""
        rate = min(tried, key=lambda each: tried[each].choosing_nats)
        return [tried[rate], *(self._run(arm, rate, seed) for seed in range(1, self._recipe.seeds))]

    def _run(self, arm: Arm, rate: float, seed: int, model: Llama | None = None) -> ArmRun:
        run = self._read_or_trained(arm, rate, seed, model)
        self.seconds += run.seconds
        return run

    def _read_or_trained(self, arm: Arm, rate: float, seed: int, model: Llama | None) -> ArmRun:
        path, self._number = self._folder / "runs" / _file_name(arm, rate, seed), self._number + 1
        if model is None and path.is_file():
            return read_run(path)
        self._on_trial(TrialEvent(number=self._number, count=self._schedule.runs, arm=arm.name, rate=rate, seed=seed))
        config = training_config(arm, self._schedule.steps, rate, seed, batch=self._recipe.batch, seq=self._recipe.seq)
        probes = self._study.probes if model is None else ()
        model = build_arm(arm, seed, self._device, self._base) if model is None else model
        run = train_arm(arm, config, self._text, probes, model, self._stop, self._observers)
        self._stop.raise_if_asked("finished trainings are kept", "the same command goes on")
        assert run is not None, "only a stop ends it without one"
        write_run(path, run)
        return run


def _file_name(arm: Arm, rate: float, seed: int) -> str:
    words = "".join(each if each.isalnum() else "-" for each in arm.name.lower())
    return f"{words}-{hashlib.sha256(arm.name.encode()).hexdigest()[:6]}-{rate:g}-{seed}.json"
