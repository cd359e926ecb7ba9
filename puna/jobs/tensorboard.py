"""Event files for TensorBoard: an observer that writes a run's curves and samples, where tensorboard is installed."""

import importlib.util
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from puna.errors import MissingExtra
from puna.jobs.pace import Pace
from puna.training.events import BadStepEvent, Event, NoticeEvent, Observer, SampleEvent, StepEvent, ValidationEvent

__all__ = ["event_files"]


@contextmanager
def event_files(folder: Path, wanted: bool | None) -> Iterator[tuple[Observer, ...]]:
    """An observer that writes into `folder`; none where it is not wanted or, for None, tensorboard is not installed.

    A sitting's first event hides what an earlier one wrote from that step on. A full disk costs the files, not the run.
    Errors: MissingExtra.
    """
    is_installed = importlib.util.find_spec("tensorboard") is not None
    if wanted and not is_installed:
        raise MissingExtra("writing TensorBoard files", "tensorboard", "tensorboard")
    if wanted is False or not is_installed:
        yield ()
        return
    from torch.utils.tensorboard import SummaryWriter

    writers, pace = list[SummaryWriter](), Pace()

    def write(event: Event) -> None:
        with suppress(OSError):
            if isinstance(event, BadStepEvent | NoticeEvent):  # nothing to plot: metrics.jsonl tells of it
                return
            if not writers:  # a sitting without a step leaves no file
                _wait_for_its_own_second(folder)
                writers.append(SummaryWriter(str(folder), purge_step=event.step, flush_secs=10))
            if isinstance(event, SampleEvent):
                writers[0].add_text("sample", textwrap.indent(event.prompt + event.text, "    "), event.step)
                return
            for name, value in _scalars(event, pace).items():
                writers[0].add_scalar(name, value, event.step)
            if not isinstance(event, StepEvent):
                writers[0].flush()  # a checkpoint may follow: a later sitting goes on from here

    try:
        yield (write,)
    finally:
        with suppress(OSError):
            for writer in writers:
                writer.close()


def _wait_for_its_own_second(folder: Path) -> None:
    """Readers take files in the order of their names, which tell sittings apart by the second in which each began."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def _scalars(event: StepEvent | ValidationEvent, pace: Pace) -> dict[str, float]:
    if isinstance(event, StepEvent):
        rates = {"learning_rate": event.learning_rate, "tokens_per_second": pace(event)}
        return {"loss/training": event.nats, "gradient_norm": event.gradient_norm, **rates}
    by_source = {f"held_out/{name.strip('/')}": nats for name, nats in event.by_source.items()}
    return {"loss/held_out": event.nats, **by_source}
