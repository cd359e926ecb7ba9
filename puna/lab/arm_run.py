"""One arm, one seed, one learning rate: trained by the one loop, then judged and probed; kept as a small JSON file."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from puna.errors import NonFiniteLoss
from puna.evaluation.perplexity import Likelihood, evaluate_windows
from puna.files import read_json, write_json
from puna.jobs.signals import StopRequest
from puna.lab.data import GROUP, StudyText, rows_of
from puna.lab.probes import Measures, Probe
from puna.lab.study import Arm
from puna.model.llama import Llama
from puna.model.norms import remember_statistics
from puna.training.checkpoint import TrainState
from puna.training.config import StepBudget, TrainingConfig
from puna.training.events import Event, HeldOut, Observer, StepEvent, ValidationEvent
from puna.training.loop import LoopHooks, run_loop
from puna.training.optimizer import build_optimizer

__all__ = ["CURVE_BATCHES", "ArmRun", "Point", "read_run", "train_arm", "training_config", "write_run"]

_CURVE_POINTS, _POINT_BATCHES = 12, 4
CURVE_BATCHES = _CURVE_POINTS * _POINT_BATCHES
"""What a curve is judged by, over all its points."""

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Held-out nats, on a few windows, after so many steps and seconds of training."""

    steps: int
    seconds: float
    nats: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """What a training came to.

    window_nats, window_tokens: of groups of windows of the judging text, by which arms are compared in pairs; empty where the
    run diverged. choosing_nats: per token of the other windows, by which a rate is chosen.
    diverged: why there is no model; None: there is one.
    """

    arm: str
    rate: float
    seed: int
    steps: int
    tokens: int
    seconds: float
    window_nats: Sequence[float] = ()
    window_tokens: Sequence[int] = ()
    choosing_nats: float = math.inf
    curve: Sequence[Point] = ()
    measures: Measures = field(default_factory=dict)
    diverged: str | None = None

    @property
    def nats(self) -> float:
        """Per token of the judging text; infinite where the run diverged."""
        return math.fsum(self.window_nats) / sum(self.window_tokens) if self.window_nats else math.inf

    @property
    def likelihood(self) -> Likelihood:
        """The same, as what is compared in pairs."""
        return Likelihood(
            window_nats=tuple(self.window_nats), window_tokens=tuple(self.window_tokens), bytes=None, characters=None,
            seconds=self.seconds,
        )  # fmt: skip


def training_config(arm: Arm, steps: int, rate: float, seed: int, *, batch: int, seq: int) -> TrainingConfig:
    """How an arm is trained: as every other one, but for what it changes itself."""
    mine = max(1, round(steps * arm.share))
    common: dict[str, Any] = {
        "budget": StepBudget(steps=mine), "batch": batch, "micro_batch": batch, "seq": seq, "learning_rate": rate,
        "seed": seed, "validate_every": max(1, mine // _CURVE_POINTS), "checkpoint_every": mine + 1,
    }  # fmt: skip
    return TrainingConfig(**{**common, **arm.training})


def train_arm(
    arm: Arm,
    config: TrainingConfig,
    text: StudyText,
    probes: Sequence[Probe],
    model: Llama,
    stop: StopRequest,
    observers: Sequence[Observer] = (),
) -> ArmRun | None:
    """Train the arm's model, judge and probe it.

    Returns: None where a stop was asked for: nothing is kept of an unfinished run.
    """
    watch = _Watch(model, config)
    hooks = LoopHooks(
        validate=lambda: HeldOut(nats=evaluate_windows(model, text.choosing[:_POINT_BATCHES]).nats_per_token),
        save=lambda _: None,
        should_stop=lambda: bool(stop),
    )
    likelihood, diverged = None, None
    try:
        run_loop(
            model,
            build_optimizer(model, config),
            rows_of(text, arm, config),
            config,
            TrainState(),
            hooks,
            (*observers, watch),
        )
        likelihood = None if stop else evaluate_windows(model, text.judged)
    except NonFiniteLoss as error:
        diverged = error.message
    if stop:
        return None
    if likelihood is not None and likelihood.nats_per_token > (guess := math.log(arm.model.vocab_size)):
        diverged = f"ends at {likelihood.nats_per_token:.3f} nats, above the {guess:.3f} of guessing"
    common = {"arm": arm.name, "rate": config.learning_rate, "seed": config.seed, **watch.facts()}
    if likelihood is None or diverged is not None:
        return ArmRun(**common, diverged=diverged)
    choosing = evaluate_windows(model, text.choosing).nats_per_token
    measures = watch.measures() | _probed(model, text, probes)
    return ArmRun(
        **common, window_nats=_grouped(likelihood.window_nats), window_tokens=_grouped(likelihood.window_tokens),
        choosing_nats=choosing, measures=measures,
    )  # fmt: skip


def _grouped(windows: Sequence[_Number]) -> tuple[_Number, ...]:
    """Neighbouring windows are alike: their sums are the observations."""
    return tuple(sum(windows[at : at + GROUP]) for at in range(0, len(windows), GROUP))


def _probed(model: Llama, text: StudyText, probes: Sequence[Probe]) -> Measures:
    found: Measures = {}
    put_back = remember_statistics(model)
    for probe in probes:
        found |= probe(model, text.judged)
        put_back()
    if len(text.held_out) > 1:
        for number, batches in enumerate(text.held_out, start=1):
            found[f"nats_of_source_{number}"] = evaluate_windows(model, batches).nats_per_token
    return found


class _Watch:
    """The curve of a run, the norm of its gradients, and how far its middle step moved the weights, as a share of them."""

    def __init__(self, model: Llama, config: TrainingConfig) -> None:
        self._model = model
        assert isinstance(config.budget, StepBudget)
        self._middle = max(2, config.budget.steps // 2)
        self._norms, self._before, self._update = list[float](), list[Tensor](), math.nan
        self.steps, self.tokens, self.seconds, self.curve = 0, 0, 0.0, list[Point]()

    def __call__(self, event: Event) -> None:
        """Observe."""
        if isinstance(event, StepEvent):
            self.steps, self.tokens, self.seconds = event.step, event.tokens, event.seconds
            self._norms.append(event.gradient_norm)
            if event.step == self._middle - 1:
                self._before = [weight.detach().clone() for weight in self._model.parameters()]
            elif event.step == self._middle:
                self._update, self._before = self._moved(), []
        elif isinstance(event, ValidationEvent):
            self.curve.append(Point(steps=event.step, seconds=self.seconds, nats=event.nats))

    def facts(self) -> dict[str, Any]:
        """How far it came, as fields of ArmRun."""
        return {"steps": self.steps, "tokens": self.tokens, "seconds": self.seconds, "curve": tuple(self.curve)}

    def measures(self) -> Measures:
        """Of a finished run."""
        late = self._norms[len(self._norms) // 2 :]
        return {
            "gradient_norm": math.fsum(late) / len(late),
            "largest_gradient_norm": max(self._norms),
            "update_norm": self._update,
        }

    def _moved(self) -> float:
        pairs = list(zip(self._model.parameters(), self._before, strict=True))
        moved = math.fsum(float((weight.detach() - before).square().sum()) for weight, before in pairs)
        return math.sqrt(moved / math.fsum(float(before.square().sum()) for _, before in pairs))


def write_run(path: Path, run: ArmRun) -> None:
    """Keep a finished run. Errors: DiskFull."""
    write_json(path, asdict(run))


def read_run(path: Path) -> ArmRun:
    """A run that was kept. Errors: FormatError."""
    values = read_json(path)
    return ArmRun(**{**values, "curve": tuple(Point(**point) for point in values["curve"])})
