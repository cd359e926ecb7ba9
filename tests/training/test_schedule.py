"""A linear rise to the peak, then half a cosine down to the final share of it."""

from dataclasses import replace
from itertools import pairwise

import pytest

from puna.errors import UsageError
from puna.training.config import ConstantSchedule, StableSchedule, StepBudget, TrainingConfig
from puna.training.schedule import learning_rate

CONFIG = TrainingConfig(budget=StepBudget(steps=1), learning_rate=2.0, warmup=0.2, final_learning_rate=0.1)


@pytest.mark.parametrize(
    ("progress", "rate"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.2, 2.0), (0.6, 2 * (0.1 + 0.9 / 2)), (1.0, 0.2), (1.5, 0.2)],
)
def test_the_rate_at_known_places(progress: float, rate: float) -> None:
    assert learning_rate(CONFIG, progress) == pytest.approx(rate, abs=1e-12)


def test_after_the_rise_it_only_falls() -> None:
    rates = [learning_rate(CONFIG, 0.2 + 0.008 * step) for step in range(101)]
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_without_warm_up_it_begins_at_the_peak_and_a_final_share_of_one_keeps_it() -> None:
    flat = TrainingConfig(budget=StepBudget(steps=1), learning_rate=2.0, warmup=0.0, final_learning_rate=1.0)
    assert {learning_rate(flat, progress) for progress in (0.0, 0.3, 1.0)} == {2.0}


@pytest.mark.parametrize(
    ("through", "rate"), [(0.0, 2.0), (0.5, 2.0), (0.75, 2.0), (0.8125, 2 * (0.1 + 0.9 * 0.5)), (1.0, 0.2)]
)
def test_a_stable_schedule_falls_in_its_last_share(through: float, rate: float) -> None:
    config = replace(CONFIG, schedule=StableSchedule(decay=0.25))
    assert learning_rate(config, 0.2 + 0.8 * through) == pytest.approx(rate, abs=1e-6)


def test_a_constant_schedule_rises_and_stays() -> None:
    config = replace(CONFIG, schedule=ConstantSchedule())
    assert [learning_rate(config, progress) for progress in (0.1, 0.2, 0.6, 1.0)] == [1.0, 2.0, 2.0, 2.0]


def test_a_decay_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="decay"):
        StableSchedule(decay=0.0)
