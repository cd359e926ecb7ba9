"""What the demo returns and `puna demo --json` prints, and the clock that times its parts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from puna.jobs.demo_facts import DemoFacts
from puna.jobs.frontier import Compressed
from puna.report.numbers import human_seconds

__all__ = [
    "AdaptNumbers",
    "Clock",
    "DemoResult",
    "GenerateNumbers",
    "StepTime",
    "TrainNumbers",
    "demo_rows",
    "summarise",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """How long a part of the job took; a part that an earlier sitting had finished counts what reading it back took."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainNumbers:
    """Pretraining, judged on held-out documents."""

    tokens: int
    tokens_per_second: float
    loss_first: float
    loss_last: float
    validation_nats: float
    bits_per_byte: float
    token_unigram_bits_per_byte: float
    byte_unigram_bits_per_byte: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptNumbers:
    """Nats per token on held-out documents of the new and the old kind, before and after adaptation."""

    new_before: float
    new_after: float
    old_before: float
    old_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateNumbers:
    """What the model wrote."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What `puna demo --json` prints."""

    report: str
    model: str
    seconds: float
    steps: list[StepTime]
    train: TrainNumbers
    adapt: AdaptNumbers
    compress: list[Compressed]
    generate: GenerateNumbers


class Clock:
    """Times the parts of the job and tells which one begins."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.steps: list[StepTime] = []
        self._tell = tell
        self._started = time.monotonic()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One part."""
        self._tell(f"{name} ...")
        started = time.monotonic()
        yield
        self.steps.append(StepTime(name=name, seconds=time.monotonic() - started))

    def at_least(self, name: str, seconds: float) -> None:
        """Count a part that earlier sittings have worked on with what it took in all."""
        self.steps = [
            replace(step, seconds=max(step.seconds, seconds)) if step.name == name else step for step in self.steps
        ]

    @property
    def seconds(self) -> float:
        """Since the clock was made."""
        return time.monotonic() - self._started


def summarise(out: Path, clock: Clock, facts: DemoFacts) -> DemoResult:
    """The numbers of a finished demo."""
    new_before, new_after, old_before, old_after = (each.nats_per_token for each in facts.adapt_numbers)
    trained, scores, sample = facts.train, facts.scores, facts.samples[0]
    return DemoResult(
        report=str(out / "report.html"),
        model=trained.model,
        seconds=clock.seconds,
        steps=clock.steps,
        train=TrainNumbers(
            tokens=trained.tokens,
            tokens_per_second=trained.tokens_per_second,
            loss_first=trained.loss_first,
            loss_last=trained.loss,
            validation_nats=trained.validation_nats,
            bits_per_byte=scores.bits_per_byte,
            token_unigram_bits_per_byte=scores.token_unigram,
            byte_unigram_bits_per_byte=scores.byte_unigram,
        ),
        adapt=AdaptNumbers(new_before=new_before, new_after=new_after, old_before=old_before, old_after=old_after),
        compress=facts.compress,
        generate=GenerateNumbers(text=sample.prompt + sample.completion.text),
    )


def demo_rows(result: DemoResult) -> list[tuple[str, str]]:
    """The result as lines for people."""
    train, adapted = result.train, result.adapt
    shrunk = [
        (f"{each.method} {'' if each.keep is None else f'{each.keep:.0%}'}".strip(), each) for each in result.compress
    ]
    return [
        ("tokens trained on", f"{train.tokens:,} at {train.tokens_per_second:,.0f} per second"),
        ("loss, nats per token", f"{train.loss_first:.3f} -> {train.loss_last:.3f}"),
        ("bits per byte, held out", f"{train.bits_per_byte:.3f}"),
        ("  token frequencies alone", f"{train.token_unigram_bits_per_byte:.3f}"),
        ("  byte frequencies alone", f"{train.byte_unigram_bits_per_byte:.3f}"),
        ("LoRA, new text", f"{adapted.new_before:.3f} -> {adapted.new_after:.3f} nats"),
        ("LoRA, old text", f"{adapted.old_before:.3f} -> {adapted.old_after:.3f} nats"),
        *((f"{name}, added nats", f"{each.added_nats:+.4f}") for name, each in shrunk),
        ("time", human_seconds(result.seconds)),
    ]
