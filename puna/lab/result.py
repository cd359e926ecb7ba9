"""What a study found: each arm over its seeds, and beside the arm that it differs from in one thing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from puna.arch.modules import norm_count
from puna.lab.arm_run import ArmRun
from puna.lab.judging import Comparison, compare_arms
from puna.lab.probes import Measures
from puna.lab.recipe import LabRecipe
from puna.lab.study import Arm, Study
from puna.planning.compute import forward_flops
from puna.planning.counting import attended_share, kv_cache_bytes_per_token

__all__ = ["ArmResult", "StudyResult", "judged_arms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm over its seeds.

    parameters: what it learns. validation_nats: mean over seeds; spread: standard deviation over them.
    rates: final nats of seed 0 at each rate tried. lost: seeds that diverged, and why the first did; their nats are infinite.
    measures: means over seeds. comparison: with the arm that it differs from in one thing.
    """

    name: str
    parameters: int
    learning_rate: float
    rates: dict[str, float]
    validation_nats: float
    spread: float
    steps: int
    tokens_per_second: float
    measures: Measures
    diverged: str | None
    lost: int
    comparison: Comparison | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """What `puna lab --json` prints.

    seconds: of all trainings, over all sittings. text_bytes, text_sha256: of what was learned from.
    """

    study: str
    arms: list[ArmResult]
    seeds: int
    steps: int
    tokens: int
    text_bytes: int
    text_sha256: str
    seconds: float
    report: str


def judged_arms(
    study: Study,
    runs: Mapping[str, Sequence[ArmRun]],
    tried: Mapping[str, Mapping[float, ArmRun]],
    recipe: LabRecipe,
    step_seconds: Mapping[str, float],
    base: ArmRun | None = None,
) -> list[ArmResult]:
    """Args: runs: of each arm, one a seed; tried: of each arm on seed 0, by rate; step_seconds: of each arm, measured in turn.
    base: what adapters stand beside.
    """
    finished = [run for each in runs.values() for run in each if run.diverged is None]
    equal_seconds = min((run.steps * step_seconds[run.arm] for run in finished), default=math.nan)
    results = []
    for arm in study.arms:
        mine = runs[arm.name]
        nats = [run.nats for run in mine]
        is_whole = all(run.diverged is None for run in mine)
        results.append(
            ArmResult(
                name=arm.name,
                parameters=arm.parameters,
                learning_rate=mine[0].rate,
                rates={f"{rate:g}": run.nats for rate, run in tried[arm.name].items()},
                validation_nats=fmean(nats),
                spread=stdev(nats) if len(nats) > 1 and is_whole else math.nan,
                steps=max(run.steps for run in mine),
                tokens_per_second=recipe.batch * recipe.seq / step_seconds[arm.name],
                measures=_counted(arm, recipe)
                | _averaged(mine)
                | _after_steps(mine, equal_seconds / step_seconds[arm.name])
                | _norm_share(arm, mine, step_seconds[arm.name] / (recipe.batch * recipe.seq))
                | _over(base, mine),
                lost=sum(run.diverged is not None for run in mine),
                diverged=next((run.diverged for run in mine if run.diverged is not None), None),
                comparison=None if arm.against is None else compare_arms(mine, runs[arm.against]),
            )
        )
    return results


def _counted(arm: Arm, recipe: LabRecipe) -> Measures:
    """What is known without training. A number less in a layer's Linears is two FLOPs less for a token."""
    return {
        "cache_bytes_per_token": kv_cache_bytes_per_token(arm.model),
        "flops_per_token": forward_flops(arm.model, recipe.seq).total / recipe.seq - 2 * arm.saved_numbers,
        "attended_share": attended_share(arm.model, recipe.seq),
    }


def _averaged(runs: Sequence[ArmRun]) -> Measures:
    """Each measure's mean over the runs that have a model."""
    there = [run.measures for run in runs if run.measures]
    found: Measures = {}
    for name in there[0] if there else ():
        values = [each[name] for each in there]
        layers = [value for value in values if isinstance(value, list)]
        if layers:
            found[name] = [fmean(layer) for layer in zip(*layers, strict=True)]
        else:
            found[name] = fmean(value for value in values if not isinstance(value, list))
    return found


def _norm_share(arm: Arm, runs: Sequence[ArmRun], token_seconds: float) -> Measures:
    """What all norms of the model take, forward and backward, of the time of a step."""
    microseconds, config = _averaged(runs).get("norm_microseconds"), arm.model
    if not isinstance(microseconds, float):
        return {}
    if config.norm == "none":
        return {"norm_share_of_step": 0.0}
    return {"norm_share_of_step": 1e-6 * microseconds / 1024 * norm_count(config) / token_seconds}


def _over(base: ArmRun | None, runs: Sequence[ArmRun]) -> Measures:
    """What adapters gain on the second source and forget of the first, in nats."""
    found = _averaged(runs)
    if base is None or not found:
        return {}
    old, new = (_of_source(found, number) - _of_source(base.measures, number) for number in (1, 2))
    return {"forgotten": old, "gained": -new}


def _of_source(measures: Measures, number: int) -> float:
    nats = measures[f"nats_of_source_{number}"]
    assert isinstance(nats, float)
    return nats


def _after_steps(runs: Sequence[ArmRun], steps: float) -> Measures:
    """Nats on a curve's few windows after as many steps as fit into the study's fastest training, between two points."""
    found = [_between(run, steps) for run in runs if run.diverged is None and run.curve]
    return {"nats_at_equal_seconds": fmean(found)} if found else {}


def _between(run: ArmRun, steps: float) -> float:
    for before, after in pairwise(run.curve):
        if before.steps <= steps <= after.steps:
            return before.nats + (steps - before.steps) / (after.steps - before.steps) * (after.nats - before.nats)
    return run.curve[-1].nats if steps > run.curve[-1].steps else run.curve[0].nats
