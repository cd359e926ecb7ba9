"""A live line for anything that trains."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from puna.cli.console import progress_line

__all__ = ["training_progress"]


@contextmanager
def training_progress(title: str) -> Iterator[Callable[[Any], None]]:
    """An observer that shows share done, loss, rate and time left."""
    from puna.training.loop import StepEvent

    with progress_line(title) as update:
        held_out, last_share = "", 0.0

        def observe(event: Any) -> None:
            nonlocal held_out, last_share
            if isinstance(event, StepEvent):
                if event.progress < last_share:
                    held_out = ""  # another run has begun
                last_share = event.progress
                rate = event.tokens / event.seconds
                update(event.progress, f"step {event.step}, loss {event.nats:.3f}{held_out}, {rate:,.0f} tokens/s")
            else:
                held_out = f", held-out {event.nats:.3f}"

        yield observe
