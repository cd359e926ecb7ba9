"""Steps that are not finite: nothing of them lands, their data are passed over, and the run ends as if they were not there."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from puna.errors import NonFiniteLoss
from puna.model.batch import Batch
from puna.training import faults
from puna.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from puna.training.config import StepBudget, TrainingConfig
from puna.training.events import BadStepEvent, HeldOut, StepEvent
from puna.training.loop import LoopHooks, run_loop
from puna.training.optimizer import build_optimizer
from puna.training.step import train_step

ALWAYS = frozenset(range(1000))


class Numbers:
    """One row of 8 tokens a step; while a step of `poison` is read, the model's gain has a gradient of infinity."""

    def __init__(self, model: Any, poison: frozenset[int] = frozenset(), rows: Sequence[int] = range(1000)) -> None:
        self.read: list[int] = []
        self._rows = rows
        self._poison, self._is_bad = poison, False
        model.norm.weight.register_hook(lambda gradient: gradient * torch.inf if self._is_bad else gradient)

    def batches(self, step: int) -> list[Batch]:
        self.read.append(step)
        self._is_bad = step in self._poison
        ids = (torch.arange(9)[None] * 7 + self._rows[step]) % 512
        return [Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:])]

    def describe(self, step: int) -> str:
        return f"row {step}"


def run(model: Any, source: Numbers, folder: Any = None, **changes: Any) -> tuple[TrainState, list[Any]]:
    settings = {"budget": StepBudget(steps=6), "batch": 1, "micro_batch": 1, "seq": 8, "checkpoint_every": 2}
    config, events = TrainingConfig(**{**settings, **changes}), []
    optimizer, saved = build_optimizer(model, config), []

    def save(state: TrainState) -> None:
        saved.append(None if folder is None else save_checkpoint(folder, model, optimizer, state, {}))

    def restore() -> TrainState | None:
        return load_checkpoint(saved[-1], model, optimizer) if saved else None

    hooks = LoopHooks(validate=lambda: HeldOut(nats=1.0), save=save, should_stop=lambda: False, restore=restore)
    return run_loop(model, optimizer, source, config, TrainState(), hooks, [events.append]), events


def weights(model: Any) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def test_the_policy_to_stop_names_the_documents_and_changes_nothing(tiny) -> None:
    before = weights(tiny)
    with pytest.raises(NonFiniteLoss, match=r"step 1: loss .* not applied; read from row 0"):
        run(tiny, Numbers(tiny, ALWAYS))
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.parameters(), strict=True))


def test_skipping_is_as_if_the_bad_rows_had_not_been_there(tiny) -> None:
    other, source = copy.deepcopy(tiny), Numbers(tiny, frozenset({2, 5}))
    state, events = run(tiny, source, on_bad_step="skip")
    assert (state.done.steps, state.passed_over, state.bad_steps) == (6, 2, 2)
    assert source.read == list(range(8))
    bad = [event for event in events if isinstance(event, BadStepEvent)]
    assert [(event.action, event.where, event.step) for event in bad] == [("skip", "row 2", 2), ("skip", "row 5", 4)]

    run(other, Numbers(other, rows=(0, 1, 3, 4, 6, 7)))
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), other.parameters(), strict=True))


def test_rolling_back_goes_on_behind_the_bad_row_from_the_last_checkpoint(tiny, tmp_path) -> None:
    other, source = copy.deepcopy(tiny), Numbers(tiny, frozenset({3}))
    state, events = run(tiny, source, tmp_path / "a", on_bad_step="rollback")
    assert source.read == [0, 1, 2, 3, 4, 5, 6, 7]  # step 2 was saved: rows 2 and 3 are behind it
    assert [event.step for event in events if isinstance(event, StepEvent)] == [1, 2, 3, 3, 4, 5, 6]
    assert (state.passed_over, state.bad_steps, state.bad_since_save) == (2, 1, 0)

    run(other, Numbers(other, rows=(0, 1, 4, 5, 6, 7)))
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), other.parameters(), strict=True))


def test_bad_steps_without_end_stop_whatever_the_policy(tiny, tmp_path) -> None:
    source = Numbers(tiny, ALWAYS)
    with pytest.raises(NonFiniteLoss, match="as in 10 steps since the last checkpoint"):
        run(tiny, source, on_bad_step="skip")
    assert source.read == list(range(11))


def test_an_overflow_of_float16_halves_the_scale_and_touches_nothing_else(tiny) -> None:
    before, source = weights(tiny), Numbers(tiny, frozenset({0, 1}))
    state, events = run(tiny, source, precision="float16", budget=StepBudget(steps=1))
    assert [(event.action, event.loss_scale) for event in events if isinstance(event, BadStepEvent)] == [
        ("overflow", 32768.0),
        ("overflow", 16384.0),
    ]
    assert (state.done.steps, state.bad_steps, state.passed_over, state.loss_scale) == (1, 0, 2, 16384.0)
    assert not all(torch.equal(a, b) for a, b in zip(before, tiny.parameters(), strict=True))


def test_the_scale_doubles_after_enough_good_steps(monkeypatch) -> None:
    monkeypatch.setattr(faults, "GOOD_STEPS", 3)
    state, scales = TrainState(), []
    for _ in range(7):
        state = faults.after_good_step(state)
        scales.append(state.loss_scale / 65536)
    assert scales == [1, 1, 2, 2, 2, 4, 4]
    assert faults.after_overflow(state).good_steps == 0


@pytest.mark.parametrize("scale", [2.0, 1024.0, 65536.0])
def test_a_power_of_two_leaves_the_update_as_it_is_to_the_bit(tiny, scale) -> None:
    other = copy.deepcopy(tiny)
    for model, factor in ((tiny, 1.0), (other, scale)):
        source, config = Numbers(model), TrainingConfig(budget=StepBudget(steps=1))
        optimizer = build_optimizer(model, config)
        for step in range(3):
            train_step(model, optimizer, source.batches(step), rate=1e-3, clip=1.0, precision="float32", scale=factor)
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), other.parameters(), strict=True))


def test_float16_trains_float32_weights_as_float32_does(tiny) -> None:
    other, losses = copy.deepcopy(tiny), {}
    for model, precision in ((tiny, "float32"), (other, "float16")):
        source = Numbers(model)
        state, _ = run(model, source, precision=precision, budget=StepBudget(steps=40), learning_rate=3e-3)
        losses[precision] = state.last_nats
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert losses["float32"] < 6
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.02)
