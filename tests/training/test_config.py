"""The settings of a run are checked when they are made."""

import math
from typing import Any

import pytest

from puna.errors import UsageError
from puna.training.config import Budget, Done, StepBudget, TimeBudget, TokenBudget, TrainingConfig


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"budget": StepBudget(steps=10), **changes})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0), ("micro_batch", -1), ("seq", 0), ("learning_rate", 0.0), ("learning_rate", math.nan),
        ("warmup", 1.0), ("warmup", -0.1), ("final_learning_rate", 1.1), ("beta2", 1.0), ("weight_decay", -0.1),
        ("weight_decay", math.nan), ("keep_checkpoints", 1), ("seed", -1), ("clip", 0.0), ("validate_every", 0),
        ("packing", "rows"),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"training\.{name}.*{value}"):
        config(**{name: value})


def test_micro_batches_divide_the_batch_or_hold_it_whole() -> None:
    assert config(batch=8, micro_batch=4).micro_batch == 4
    assert config(batch=2, micro_batch=8).batch == 2
    with pytest.raises(UsageError, match="divisor of batch = 8, got 3"):
        config(batch=8, micro_batch=3)


@pytest.mark.parametrize(
    "budget", [StepBudget(steps=4), TokenBudget(tokens=4), TimeBudget(seconds=4.0)], ids=lambda b: b.kind
)
def test_a_budget_is_used_up_in_its_own_measure(budget: Budget) -> None:
    done = Done(steps=1, tokens=2, seconds=3.0)
    assert budget.progress(done) == {"steps": 0.25, "tokens": 0.5, "seconds": 0.75}[budget.kind]
    assert budget.progress(Done()) == 0


def test_a_budget_of_nothing_is_refused() -> None:
    for build in (lambda: StepBudget(steps=0), lambda: TokenBudget(tokens=-1), lambda: TimeBudget(seconds=0.0)):
        with pytest.raises(UsageError, match="expected more than 0"):
            build()
