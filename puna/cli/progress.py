"""A live line for anything that trains, and for a compression layer by layer; on a terminal of 100 columns it stays one line."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from puna.cli.console import progress_line, say
from puna.report.numbers import human_bytes, human_count, human_seconds
from puna.training.events import BadStepEvent, NoticeEvent, StepEvent, ValidationEvent

__all__ = ["compression_progress", "training_progress"]


@contextmanager
def training_progress(title: str, ceiling: Callable[[], float] | None = None) -> Iterator[Callable[[Any], None]]:
    """An observer that shows share done, loss, rate and time left; on a terminal also share of the ceiling and memory.

    Args: ceiling: the tokens per second that the machine's products would allow; asked for on a terminal only, since it
          may have to be measured.
    """
    from puna.jobs.pace import Pace
    from puna.jobs.peak import held_bytes

    is_terminal = sys.stderr.isatty()
    highest = 0.0 if ceiling is None or not is_terminal else ceiling()
    with progress_line(title) as update:
        held_out, last_share, pace = "", 0.0, Pace()

        def observe(event: Any) -> None:
            nonlocal held_out, last_share
            if isinstance(event, StepEvent):
                if event.progress < last_share:
                    held_out = ""  # another run has begun
                last_share = event.progress
                rate, words = pace(event), f"step {event.step}, loss {event.nats:.3f}{held_out}"
                if is_terminal:
                    share = f", {rate / highest:.0%} of ceiling" if highest else ""
                    words = f"{words}, {human_count(rate)} tok/s{share}, {human_bytes(held_bytes())}"
                else:
                    words = f"{words}, {rate:,.0f} tokens/s"
                update(event.progress, words)
            elif isinstance(event, ValidationEvent):
                held_out = f", held-out {event.nats:.3f}"
            elif isinstance(event, NoticeEvent):
                say(f"notice: step {event.step}: {event.message}")
            elif isinstance(event, BadStepEvent) and event.action != "overflow":
                say(f"notice: step {event.step + 1}: loss {event.nats:.4g}, {event.action}; read from {event.where}")

        yield observe


@contextmanager
def compression_progress() -> Iterator[Callable[[Any], None]]:
    """An observer that shows which layer is being compressed and the time left."""
    from puna.jobs.layerwise import LayerEvent, LayerNotice

    with progress_line("compressing") as update:

        def observe(event: Any) -> None:
            if isinstance(event, LayerEvent):
                left = f", {human_seconds(round(event.seconds_left))} left" if event.share < 1 else ""
                update(event.share, f"layer {event.layer} of {event.layers}{left}")
            elif isinstance(event, LayerNotice):
                say(f"notice: {event.message}")

        yield observe
