"""The loop: when it validates, saves and stops, and what it tells."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from puna.model.batch import Batch
from puna.training.checkpoint import TrainState
from puna.training.config import Done, StepBudget, TokenBudget, TrainingConfig
from puna.training.events import HeldOut, SampleEvent, StepEvent, ValidationEvent
from puna.training.loop import LoopHooks, run_loop
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
    """What the loop did; a save is asked for at each step of `asked`."""

    nats: list[float] = field(default_factory=list)
    saved: list[TrainState] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    stop_after: int = 1 << 30
    asked: tuple[int, ...] = ()

    def hooks(self) -> LoopHooks:
        return LoopHooks(
            validate=self.validate, save=self.saved.append, should_stop=self.should_stop, should_save=self.should_save,
            sample=self.sample,
        )  # fmt: skip

    def should_save(self) -> bool:
        return any(isinstance(event, StepEvent) and event.step in self.asked for event in self.events[-1:])

    def validate(self) -> HeldOut:
        return HeldOut(nats=self.nats.pop(0) if self.nats else 1.0, by_source={"prose": 2.0})

    def sample(self, step: int) -> SampleEvent:
        return SampleEvent(step=step, prompt="the", text=" llama")

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


def test_every_validation_says_each_source_and_is_followed_by_a_sample(tiny) -> None:
    trace = Trace()
    run(tiny, trace)
    looked = [event for event in trace.events if not isinstance(event, StepEvent)]
    assert [type(event) for event in looked] == [ValidationEvent, SampleEvent] * 6
    assert [event.step for event in looked[::2]] == [event.step for event in looked[1::2]] == [3, 4, 6, 8, 9, 10]
    assert looked[0].by_source == {"prose": 2.0}


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


def test_a_save_that_is_asked_for_comes_at_once_and_changes_nothing_else(tiny, build_llama) -> None:
    asked, plain = Trace(asked=(2, 3, 10)), Trace()
    ends = [run(model, trace) for model, trace in ((tiny, asked), (build_llama(), plain))]
    assert [state.done.steps for state in asked.saved] == [2, 3, 6, 9, 10]
    assert [state.done.steps for state in plain.saved] == [3, 6, 9, 10]
    assert [event.nats for event in asked.events if isinstance(event, StepEvent)] == [
        event.nats for event in plain.events if isinstance(event, StepEvent)
    ]
    assert replace(ends[0], done=ends[1].done) == ends[1]


class Halves(Numbers):
    """The row, and another, as two micro-batches; asks to stop in the midst of step 3."""

    is_asked = False

    def batches(self, step: int) -> list[Batch]:
        parts = super().batches(step) + super().batches(step + 9)
        self.is_asked = step == 3
        return parts


def test_a_stop_in_the_midst_of_a_step_drops_it_and_saves_the_one_before(tiny, build_llama) -> None:
    source, trace, other = Halves(), Trace(), build_llama()
    config = TrainingConfig(budget=StepBudget(steps=10), batch=2, micro_batch=1, seq=8, checkpoint_every=100)
    hooks = replace(trace.hooks(), should_stop=lambda: source.is_asked)
    state = run_loop(tiny, build_optimizer(tiny, config), source, config, TrainState(), hooks)
    assert state.done.steps == 3
    assert [saved.done.steps for saved in trace.saved] == [3]
    hooks = replace(hooks, should_stop=replace(trace, stop_after=3).should_stop)
    end = run_loop(other, build_optimizer(other, config), Halves(), config, TrainState(), hooks, [trace.events.append])
    assert end.done.steps == 3
    for name, weight in tiny.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name
    assert all(weight.grad is None for weight in tiny.parameters())
