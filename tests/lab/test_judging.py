"""Verdicts on made-up runs whose truth is known."""

import math

import numpy as np
import pytest

from puna.evaluation.agreement import added_nats
from puna.lab.arm_run import ArmRun
from puna.lab.judging import compare_arms

TOKENS = (256,) * 64


def runs(arm: str, shift: float, seeds: int = 3, of_seeds: float = 0.0, noise: float = 0.02) -> list[ArmRun]:
    """Windows of very different difficulty, the same for all arms; each seed moves all of its windows."""
    hard = np.random.default_rng(0).uniform(2.0, 5.0, 64)
    made = []
    for seed in range(seeds):
        own = np.random.default_rng((ord(arm), seed))
        nats = hard + shift + of_seeds * (seed - (seeds - 1) / 2) + noise * own.standard_normal(64)
        made.append(ArmRun(arm=arm, rate=1e-3, seed=seed, steps=1, tokens=1, seconds=1.0,
                           window_nats=tuple(256 * nats), window_tokens=TOKENS))  # fmt: skip
    return made


def test_a_difference_far_above_the_noise_is_called_and_has_its_size() -> None:
    found = compare_arms(runs("a", 0.05), runs("b", 0.0))
    assert found.verdict == "worse"
    assert found.added_nats == pytest.approx(0.05, abs=0.01)
    assert found.low < found.added_nats < found.high
    assert len(found.by_seed) == 3
    assert compare_arms(runs("b", 0.0), runs("a", 0.05)).verdict == "better"


def test_an_arm_is_not_told_apart_from_itself() -> None:
    assert compare_arms(runs("a", 0.0), runs("b", 0.0)).verdict == "not distinguishable"


def test_seeds_that_disagree_widen_the_interval_and_forbid_a_verdict() -> None:
    calm, wild = (compare_arms(runs("a", 0.05, of_seeds=size), runs("b", 0.0)) for size in (0.0, 0.2))
    assert wild.high - wild.low > 3 * (calm.high - calm.low)
    assert wild.verdict == "not distinguishable"


def test_where_seeds_are_all_that_differs_the_interval_is_students_of_the_seeds() -> None:
    found = compare_arms(runs("a", 0.05, of_seeds=0.1, noise=0.0), runs("b", 0.0, noise=0.0))
    assert found.by_seed == pytest.approx((-0.05, 0.05, 0.15))
    assert found.high - found.added_nats == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=0.01)


def test_one_seed_has_the_interval_of_its_windows() -> None:
    mine, other = runs("a", 0.05, seeds=1), runs("b", 0.0, seeds=1)
    found, alone = compare_arms(mine, other), added_nats(other[0].likelihood, mine[0].likelihood)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), rel=1e-3)
    assert found.verdict == "too few seeds"


def test_an_arm_that_diverged_is_marked_and_not_compared() -> None:
    lost = [ArmRun(arm="a", rate=1e-3, seed=seed, steps=1, tokens=1, seconds=1.0, diverged="nan") for seed in range(3)]
    found = compare_arms(lost, runs("b", 0.0))
    assert (found.verdict, found.by_seed) == ("diverged", ())
    assert math.isnan(found.added_nats)
    assert compare_arms(runs("b", 0.0), lost).verdict == "not comparable"
