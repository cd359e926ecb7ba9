"""How long a study will take, and how many steps its arms get: measured on each arm's first steps, before anything is trained."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from puna.errors import UsageError
from puna.files import read_json
from puna.lab.arm_run import CURVE_BATCHES, training_config
from puna.lab.data import GROUP, StudyText, rows_of
from puna.lab.recipe import LabRecipe
from puna.lab.study import Arm, Study, build_arm
from puna.report.numbers import human_seconds
from puna.training.optimizer import build_optimizer
from puna.training.step import train_step

__all__ = ["Schedule", "find_schedule", "make_schedule", "step_seconds"]

_TIMED_STEPS = 5
_FORWARD_SHARE = 0.4  # of a step, for judging the same tokens
_PROBES_IN_STEPS = 12  # what the probes of a run take


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """steps: of an arm whose share is 1. step_seconds: by arm. runs: trainings in all. seconds: what they will take."""

    steps: int
    step_seconds: Mapping[str, float]
    runs: int
    seconds: float


def make_schedule(study: Study, recipe: LabRecipe, text: StudyText, device: torch.device) -> Schedule:
    """Time a few steps of each arm and see what fits.

    Errors: UsageError: fewer steps than the recipe's least would fit; says how long the study needs.
    """
    began = time.monotonic()
    times = step_seconds(study.arms, recipe, text, device)
    each = len(recipe.rates(study)) + recipe.seeds - 1
    windows = GROUP * (len(text.judged) + len(text.choosing) + CURVE_BATCHES)
    judged = _FORWARD_SHARE * windows / recipe.batch + _PROBES_IN_STEPS
    fixed = each * judged * math.fsum(times.values()) + (time.monotonic() - began)
    per_step = each * math.fsum(arm.share * times[arm.name] for arm in study.arms)
    if study.base is not None:
        per_step += study.base.share * step_seconds([study.base], recipe, text, device)[study.base.name]
    steps = int((recipe.seconds - fixed) / per_step)
    if steps < recipe.least_steps:
        needed = fixed + recipe.least_steps * per_step
        raise UsageError(
            f"seconds: expected at least {math.ceil(needed)} for {recipe.least_steps} steps of {len(study.arms)} arms, "
            f"{each} trainings each, got {recipe.seconds:g}",
            f"give it {human_seconds(needed)}, or fewer --seeds, a smaller --batch or --set dim",
        )
    return Schedule(
        steps=steps,
        step_seconds=times,
        runs=each * len(study.arms) + (study.base is not None),
        seconds=fixed + steps * per_step,
    )


def find_schedule(path: Path, study: Study, recipe: LabRecipe, text: StudyText, device: torch.device) -> Schedule:
    """The schedule that an earlier sitting wrote there, or a new one. Errors: as make_schedule."""
    return Schedule(**read_json(path)) if path.is_file() else make_schedule(study, recipe, text, device)


def step_seconds(arms: Sequence[Arm], recipe: LabRecipe, text: StudyText, device: torch.device) -> dict[str, float]:
    """Of each arm the middle of a few steps, after the first; in turn, round after round, so that a slow moment meets all."""
    steppers = {arm.name: _stepper(arm, recipe, text, device) for arm in arms}
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for number in range(1 + _TIMED_STEPS):
        for name, step in steppers.items():
            began = time.monotonic()
            step(number)
            times[name].append(time.monotonic() - began)
    return {name: median(each[1:]) for name, each in times.items()}


def _stepper(arm: Arm, recipe: LabRecipe, text: StudyText, device: torch.device) -> Callable[[int], object]:
    """Takes a step of an arm, by its number."""
    config = training_config(arm, _TIMED_STEPS, 1e-3, 0, batch=recipe.batch, seq=recipe.seq)
    model = build_arm(arm, 0, device)
    optimizer, rows = build_optimizer(model, config), rows_of(text, arm, config)

    def step(number: int) -> object:
        batches = rows.batches(number)
        return train_step(model, optimizer, batches, rate=1e-5, clip=config.clip, precision=config.precision)

    return step
