"""A linear rise to the peak, then half a cosine down to the final share of it."""

from itertools import pairwise

import pytest

from puna.training.config import StepBudget, TrainingConfig
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
