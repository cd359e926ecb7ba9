"""What becomes of a step whose loss or gradient is not finite: its update never lands, and its data are passed over.

In float16 an overflow of the gradient is expected: the loss scale halves, and doubles again after 2,000 good steps
(Micikevicius et al. 2017, arXiv:1710.03740). Anything else is a bad number, and the policy decides: stop; skip the step's
data; or roll back to the last checkpoint and go on behind them (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1).
"""

from dataclasses import replace

from puna.errors import NonFiniteLoss
from puna.training.checkpoint import TrainState
from puna.training.config import TrainingConfig
from puna.training.step import StepOutcome

__all__ = ["after_good_step", "after_overflow", "is_overflow", "pass_over", "refuse"]

GOOD_STEPS = 2000
MAX_SCALE = 2.0**24
_MOST_BAD_STEPS = 10  # between two checkpoints: more are no accident


def is_overflow(state: TrainState, config: TrainingConfig, outcome: StepOutcome) -> bool:
    """Whether a smaller loss scale may mend the step."""
    return config.precision == "float16" and outcome.is_loss_finite and state.loss_scale > 1


def after_overflow(state: TrainState) -> TrainState:
    """Half the scale; the next step takes the next data."""
    return replace(state, loss_scale=state.loss_scale / 2, good_steps=0, passed_over=state.passed_over + 1)


def after_good_step(state: TrainState) -> TrainState:
    """Twice the scale after enough good steps in a row."""
    if state.good_steps + 1 < GOOD_STEPS:
        return replace(state, good_steps=state.good_steps + 1)
    return replace(state, good_steps=0, loss_scale=min(2 * state.loss_scale, MAX_SCALE))


def pass_over(state: TrainState, restored: TrainState | None = None) -> TrainState:
    """Go on with the data behind a bad step's, in `state` or where a rollback has gone to."""
    bad, now = state.batches_read, state if restored is None else restored
    return replace(
        now,
        passed_over=bad + 1 - now.done.steps,
        bad_steps=state.bad_steps + 1,
        bad_since_save=state.bad_since_save + 1,
    )


def refuse(state: TrainState, config: TrainingConfig, outcome: StepOutcome, where: str) -> None:
    """Errors: NonFiniteLoss: the policy is to stop, or bad steps do not end. Args: where: what the step read."""
    if config.on_bad_step != "stop" and state.bad_since_save < _MOST_BAD_STEPS:
        return
    often = f", as in {state.bad_since_save} steps since the last checkpoint" if state.bad_since_save else ""
    raise NonFiniteLoss(
        f"step {state.done.steps + 1}: loss {outcome.nats:.4g} with gradient norm {outcome.gradient_norm:.4g}{often}; "
        f"the update was not applied; read from {where}",
        "lower the learning rate, look at these documents, or --set training.on_bad_step=skip (or rollback)",
    )
