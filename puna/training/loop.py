"""The one training loop: pretraining, adaptation and healing differ in what is trainable and in the data, not here.

The loop knows no files and no screen. What it reports goes to observers as frozen events; saving and validating are
functions that the job passes in.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch.optim import Optimizer

from puna.model.llama import Llama
from puna.training.batches import BatchSource
from puna.training.checkpoint import TrainState
from puna.training.config import Done, TrainingConfig
from puna.training.events import BadStepEvent, HeldOut, Observer, SampleEvent, StepEvent, ValidationEvent, tell
from puna.training.faults import after_good_step, after_overflow, is_overflow, pass_over, refuse
from puna.training.schedule import learning_rate
from puna.training.step import Loss, StepOutcome, batch_nats, train_step

__all__ = ["LoopHooks", "is_finished", "run_loop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopHooks:
    """What a job does around the steps.

    validate:    mean nats on held-out text.
    save:        write a checkpoint of this state.
    should_stop: whether a signal asked to stop; looked at after every step and, to drop it, between its micro-batches.
    should_save: whether a signal has asked to save now, since this was last asked.
    restore:     put the last checkpoint back and return its state; None where there is none.
    sample:      let the model write after this step; it draws from no generator of the run's. None: it does not.
    loss:        what is learned of a batch.
    """

    validate: Callable[[], HeldOut]
    save: Callable[[TrainState], None]
    should_stop: Callable[[], bool]
    should_save: Callable[[], bool] = lambda: False
    restore: Callable[[], TrainState | None] = lambda: None
    sample: Callable[[int], SampleEvent] | None = None
    loss: Loss = batch_nats


def run_loop(
    model: Llama,
    optimizer: Optimizer,
    source: BatchSource,
    config: TrainingConfig,
    state: TrainState,
    hooks: LoopHooks,
    observers: Sequence[Observer] = (),
) -> TrainState:
    """Train until the budget is used or a stop is asked for; return the state after the last finished step, saved.

    Errors: NonFiniteLoss, as `training.on_bad_step` says; the last checkpoint stands.
    """
    step_seconds, is_saved, finished = 0.0, True, is_finished(state, config)
    while not (finished or hooks.should_stop()):
        started = time.monotonic()
        rate = learning_rate(config, config.budget.progress(_expected(state.done, config, step_seconds)))
        batches, scale = source.batches(state.batches_read), state.loss_scale if config.precision == "float16" else 1.0
        outcome = train_step(
            model, optimizer, batches, rate=rate, clip=config.clip, precision=config.precision, scale=scale,
            should_stop=hooks.should_stop, loss=hooks.loss,
        )  # fmt: skip
        if outcome is None:
            break
        if not outcome.is_applied:
            state = _after_bad_step(state, config, outcome, source, hooks, observers)
            continue
        step_seconds = time.monotonic() - started
        state = _after(state, outcome, step_seconds)
        progress = config.budget.progress(state.done)
        finished = progress >= 1
        tell(observers, _step_event(state, outcome, rate, progress))
        is_saved = finished or state.done.steps % config.checkpoint_every == 0
        if is_saved or state.done.steps % config.validate_every == 0:
            state = _validate(state, hooks, observers)
        if is_saved:
            state = replace(_rank(state), bad_since_save=0)
            finished = is_finished(state, config)
            hooks.save(state)
        elif hooks.should_save():
            is_saved = True
            hooks.save(state)
    if not (finished or is_saved):
        hooks.save(state)
    return state


def is_finished(state: TrainState, config: TrainingConfig) -> bool:
    """Whether the budget is used, or too many checkpoints in a row were no better than the best one."""
    waited = state.done.steps - (state.best_step or state.done.steps)
    is_out_of_patience = config.patience > 0 and waited >= config.patience * config.checkpoint_every
    return config.budget.progress(state.done) >= 1 or is_out_of_patience


def _expected(done: Done, config: TrainingConfig, step_seconds: float) -> Done:
    """Where the run will stand after the coming step."""
    tokens = config.batch * config.seq
    return Done(steps=done.steps + 1, tokens=done.tokens + tokens, seconds=done.seconds + step_seconds)


def _after(state: TrainState, outcome: StepOutcome, seconds: float) -> TrainState:
    done = state.done
    return replace(
        after_good_step(state),
        done=Done(
            steps=done.steps + 1,
            tokens=done.tokens + outcome.targets,
            seconds=done.seconds + seconds,
        ),
        first_nats=outcome.nats if state.first_nats is None else state.first_nats,
        last_nats=outcome.nats,
    )


def _after_bad_step(
    state: TrainState,
    config: TrainingConfig,
    outcome: StepOutcome,
    source: BatchSource,
    hooks: LoopHooks,
    observers: Sequence[Observer],
) -> TrainState:
    where, action = source.describe(state.batches_read), str(config.on_bad_step)
    if is_overflow(state, config, outcome):
        action, after = "overflow", after_overflow(state)
    else:
        refuse(state, config, outcome, where)
        restored = hooks.restore() if config.on_bad_step == "rollback" else None
        after = pass_over(state, restored)
    event = BadStepEvent(
        step=after.done.steps,
        nats=outcome.nats,
        gradient_norm=outcome.gradient_norm,
        action=action,
        where=where,
        loss_scale=after.loss_scale,
    )
    tell(observers, event)
    return after


def _step_event(state: TrainState, outcome: StepOutcome, rate: float, progress: float) -> StepEvent:
    return StepEvent(
        step=state.done.steps,
        tokens=state.done.tokens,
        nats=outcome.nats,
        learning_rate=rate,
        gradient_norm=outcome.gradient_norm,
        seconds=state.done.seconds,
        progress=min(1.0, progress),
    )


def _validate(state: TrainState, hooks: LoopHooks, observers: Sequence[Observer]) -> TrainState:
    step, found = state.done.steps, hooks.validate()
    event = ValidationEvent(step=step, tokens=state.done.tokens, nats=found.nats, by_source=found.by_source)
    tell(observers, event)
    if hooks.sample is not None:
        tell(observers, hooks.sample(step))
    return replace(state, validation_nats=found.nats)


def _rank(state: TrainState) -> TrainState:
    """Whether the step about to be saved, just validated, is the best so far."""
    assert state.validation_nats is not None
    if state.best_validation_nats is not None and state.validation_nats >= state.best_validation_nats:
        return state
    return replace(state, best_validation_nats=state.validation_nats, best_step=state.done.steps)
