"""The loop: when it validates, saves and stops, and what it tells."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from puna.model.batch import Batch
from puna.training.checkpoint import TrainState
from puna.training.config import Done, StepBudget, TokenBudget, TrainingConfig
from puna.training.loop import LoopHooks, StepEvent, ValidationEvent, run_loop
from puna.training.optimizer import build_optimizer


class Numbers:
    """One row of 8 tokens for each step."""

    def batches(self, step: int) -> list[Batch]:
        ids = (torch.arange(9)[None] + step) % 512
        return [Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:])]

    def describe(self, step: int) -> str:
        return f"row {step}"


@dataclass
class Trace:
    """What the loop did."""

    nats: list[float] = field(default_factory=list)
    saved: list[TrainState] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    stop_after: int = 1 << 30

    def hooks(self) -> LoopHooks:
        return LoopHooks(validate=self.validate, save=self.saved.append, should_stop=self.should_stop)

    def validate(self) -> float:
        return self.nats.pop(0) if self.nats else 1.0

    def should_stop(self) -> bool:
        return sum(isinstance(event, StepEvent) for event in self.events) >= self.stop_after


def run(model, trace: Trace, state: TrainState | None = None, **changes: Any) -> TrainState:
    settings = {"budget": StepBudget(steps=10), "batch": 1, "seq": 8, "validate_every": 4, "checkpoint_every": 3}
    config = TrainingConfig(**{**settings, **changes})
    state = TrainState() if state is None else state
    return run_loop(
        model, build_optimizer(model, config), Numbers(), config, state, trace.hooks(), [trace.events.append]
    )


def test_it_validates_and_saves_when_it_should(tiny) -> None:
    trace = Trace()
    state = run(tiny, trace)
    steps = [event for event in trace.events if isinstance(event, StepEvent)]
    validated = [event.step for event in trace.events if isinstance(event, ValidationEvent)]
    assert [event.step for event in steps] == list(range(1, 11))
    assert validated == [3, 4, 6, 8, 9, 10]  # every 4th, and whatever is saved
    assert [saved.done.steps for saved in trace.saved] == [3, 6, 9, 10]
    assert (state.done.steps, state.done.tokens, state.validation_nats) == (10, 80, 1.0)
    assert (state.first_nats, state.last_nats) == (steps[0].nats, steps[-1].nats)
    assert steps[-1].progress == 1.0
    assert steps[-1].learning_rate == pytest.approx(0.05 * 1.5e-3)


def test_the_best_step_is_one_that_was_saved(tiny) -> None:
    trace = Trace(nats=[3.0, 0.5, 2.0, 0.5, 2.5, 2.0])  # validated at 3, 4, 6, 8, 9, 10
    state = run(tiny, trace)
    assert (state.best_step, state.best_validation_nats, state.validation_nats) == (6, 2.0, 2.0)


def test_a_stop_ends_it_after_the_step_and_saves_once(tiny) -> None:
    for steps, saved in ((5, [3, 5]), (6, [3, 6])):
        trace = Trace(stop_after=steps)
        assert run(tiny, trace).done.steps == steps
        assert [state.done.steps for state in trace.saved] == saved


def test_a_used_up_budget_does_nothing(tiny) -> None:
    trace = Trace()
    state = TrainState(done=Done(steps=10, tokens=80, seconds=1.0))
    assert run(tiny, trace, state) == state
    assert (trace.saved, trace.events) == ([], [])


def test_a_token_budget_ends_with_the_step_that_passes_it(tiny) -> None:
    assert run(tiny, Trace(), budget=TokenBudget(tokens=17)).done == Done(
        steps=3, tokens=24, seconds=pytest.approx(0, abs=60)
    )
