"""The settings of a training run, checked at construction."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from puna.errors import UsageError, unknown_name

__all__ = [
    "Budget",
    "ConstantSchedule",
    "CosineSchedule",
    "Done",
    "EpochBudget",
    "Packing",
    "Precision",
    "Schedule",
    "StableSchedule",
    "StepBudget",
    "TimeBudget",
    "TokenBudget",
    "TrainingConfig",
]

Packing = Literal["contiguous", "documents"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How far a run has come; seconds are of training alone, over all its sittings."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBudget:
    """Train for so many optimizer steps. Reproducible to the bit."""

    kind: Literal["steps"] = "steps"
    steps: int

    def __post_init__(self) -> None:
        _positive("steps", self.steps)

    def progress(self, done: Done) -> float:
        """Share of the budget that is used, 0 to 1."""
        return done.steps / self.steps

    def in_tokens(self, step_tokens: float) -> float:
        """The same in tokens learned. Args: step_tokens: those of one step."""
        return self.steps * step_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """Train on so many tokens; the last step may pass it. Reproducible to the bit."""

    kind: Literal["tokens"] = "tokens"
    tokens: int

    def __post_init__(self) -> None:
        _positive("tokens", self.tokens)

    def progress(self, done: Done) -> float:
        """Share of the budget that is used, 0 to 1."""
        return done.tokens / self.tokens

    def in_tokens(self, step_tokens: float) -> float:  # noqa: ARG002 - the others read it
        """The same in tokens learned."""
        return float(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeBudget:
    """Train for so many seconds. The number of steps, and so the result, depends on the machine."""

    kind: Literal["seconds"] = "seconds"
    seconds: float

    def __post_init__(self) -> None:
        _positive("seconds", self.seconds)

    def progress(self, done: Done) -> float:
        """Share of the budget that is used, 0 to 1."""
        return done.seconds / self.seconds

    def in_tokens(self, step_tokens: float) -> None:
        """Not known: the clock decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBudget:
    """Read every row so many times; a run turns it into steps as soon as it knows its rows."""

    kind: Literal["epochs"] = "epochs"
    epochs: float

    def __post_init__(self) -> None:
        _positive("epochs", self.epochs)

    def in_steps(self, rows: int, batch: int) -> StepBudget:
        """The same for so many rows, a last step being filled up from the next epoch."""
        return StepBudget(steps=math.ceil(self.epochs * rows / batch))

    def in_tokens(self, step_tokens: float) -> None:
        """Not known before the rows are."""

    def progress(self, done: Done) -> float:
        """Never asked: epochs are steps by then."""
        raise AssertionError(f"{self} was not turned into steps after {done}")


Budget = StepBudget | TokenBudget | TimeBudget | EpochBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineSchedule:
    """Half a cosine from the peak to the final rate. Source: Loshchilov & Hutter 2016, arXiv:1608.03983."""

    kind: Literal["cosine"] = "cosine"

    def height(self, through: float) -> float:
        """1 at the peak, 0 at the final rate; through: share of the run after the warm-up."""
        return 0.5 * (1 + math.cos(math.pi * through))


@dataclass(frozen=True, slots=True, kw_only=True)
class StableSchedule:
    """Warm-up, stable, decay: the peak until the last share of the run, then 1 - sqrt down to the final rate.

    Sources: Hu et al. 2024, arXiv:2404.06395; the decay's form, Hägele et al. 2024, arXiv:2405.18392.
    """

    kind: Literal["wsd"] = "wsd"
    decay: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise UsageError(f"training.schedule.decay: expected a share up to 1, got {self.decay}", "0.2 is usual")

    def height(self, through: float) -> float:
        """1 at the peak, 0 at the final rate; through: share of the run after the warm-up."""
        return 1 - math.sqrt(max(0.0, (through - 1 + self.decay) / self.decay))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSchedule:
    """The peak to the end."""

    kind: Literal["constant"] = "constant"

    def height(self, through: float) -> float:  # noqa: ARG002 - the others read it
        """1 throughout."""
        return 1.0


Schedule = CosineSchedule | StableSchedule | ConstantSchedule


_POSITIVE = (
    *("batch", "micro_batch", "seq", "validate_every", "checkpoint_every"),
    *("learning_rate", "lora_b_ratio", "clip"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Sizes are in sequences and tokens; warm-up, final learning rate and betas are shares.

    optimizer: muon updates the blocks' matrices by Muon at AdamW's own size of update, everything else by AdamW.
    packing: rows are plain windows of the text, or whole documents that see and predict nothing of each other.
    patience: stop after so many checkpoints in a row that are no better on held-out text; 0: never.
    on_bad_step: what becomes of a loss or gradient that is NaN or infinite, besides that it never lands.
    lora_b_ratio: the learning rate of an adapter's B over that of everything else (LoRA+, about 16 there).
    checkpoint_activations: keep each block's input alone and form the rest again on the way back.
    """

    budget: Budget
    batch: int = 8
    micro_batch: int = 8
    seq: int = 256
    learning_rate: float = 1.5e-3
    final_learning_rate: float = 0.05
    warmup: float = 0.05
    schedule: Schedule = field(default_factory=CosineSchedule)
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.1
    lora_b_ratio: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    precision: Precision = "float32"
    packing: Packing = "contiguous"
    checkpoint_activations: bool = False
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    validate_every: int = 100
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    patience: int = 0
    seed: int = 0

    def for_rows(self, rows: int) -> "TrainingConfig":
        """The same for so many rows: a budget in epochs is turned into steps."""
        if not isinstance(self.budget, EpochBudget):
            return self
        return replace(self, budget=self.budget.in_steps(rows, self.batch))

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            _positive(f"training.{name}", getattr(self, name))
        if self.lora_b_ratio != 1 and self.optimizer != "adamw":
            raise UsageError(
                f"training.lora_b_ratio: expected 1 beside {self.optimizer}, got {self.lora_b_ratio}", "use adamw"
            )
        if self.packing not in get_args(Packing):
            raise unknown_name("training.packing", self.packing, get_args(Packing))
        for name in ("warmup", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"training.{name}: expected at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.final_learning_rate <= 1:
            raise UsageError(
                f"training.final_learning_rate: expected a share from 0 to 1, got {self.final_learning_rate}",
                "0.05 ends at a twentieth of learning_rate",
            )
        if self.patience < 0:
            raise UsageError(f"training.patience: expected 0 or more, got {self.patience}", "0 never stops early")
        if not self.weight_decay >= 0:
            raise UsageError(f"training.weight_decay: expected 0 or more, got {self.weight_decay}", "0.1 is usual")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"training.seed: expected 0 to 2^63 - 1, got {self.seed}", "any such number will do")
        if self.batch % self.micro_batch and self.batch > self.micro_batch:
            raise UsageError(
                f"training.micro_batch: expected a divisor of batch = {self.batch}, got {self.micro_batch}",
                "a step is cut into equal micro-batches",
            )
        if self.keep_checkpoints < 2:
            raise UsageError(
                f"training.keep_checkpoints: expected at least 2, got {self.keep_checkpoints}",
                "the one before the last survives a damaged last one",
            )


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise UsageError(f"{name}: expected more than 0, got {value}")
