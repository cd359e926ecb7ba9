"""What a run tells of itself while it learns: frozen events, given to observers, which are functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = [
    "BadStepEvent",
    "Event",
    "HeldOut",
    "NoticeEvent",
    "Observer",
    "SampleEvent",
    "StepEvent",
    "ValidationEvent",
    "tell",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """One optimizer step: nats are the mean over its targets, before the update."""

    step: int
    tokens: int
    nats: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    progress: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationEvent:
    """Mean nats on held-out text after a step, over all its targets and over those of each source."""

    step: int
    tokens: int
    nats: float
    by_source: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadStepEvent:
    """A step whose update did not land, because loss or gradient were not finite.

    step:  the last one that did. where: what the bad one read. action: overflow (of float16), skip or rollback.
    """

    step: int
    nats: float
    gradient_norm: float
    action: str
    where: str
    loss_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleEvent:
    """What the model wrote after a prompt, after a step."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Mean nats on held-out text: over all its targets, and over those of each source."""

    nats: float
    by_source: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeEvent:
    """Something that a person should know, after a step; the run goes on."""

    step: int
    message: str


Event = StepEvent | ValidationEvent | SampleEvent | BadStepEvent | NoticeEvent
Observer = Callable[[Event], None]


def tell(observers: Sequence[Observer], event: Event) -> None:
    """Give an event to each observer."""
    for observer in observers:
        observer(event)
