"""Ctrl-C and SIGTERM while something must be saved first: the first one asks, a second one ends at once.

SIGUSR1 asks to save and go on.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from puna.errors import Interrupted

__all__ = ["StopRequest", "stop_request"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a signal has asked to stop, and which; whether one has asked to save."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.wants_save = False

    def __bool__(self) -> bool:
        return self.signum is not None

    def take_save(self) -> bool:
        """Whether SIGUSR1 came since this was last asked."""
        wanted, self.wants_save = self.wants_save, False
        return wanted

    def raise_if_asked(self, outcome: str, hint: str = "") -> None:
        """Raise Interrupted, saying what was saved, if a signal came."""
        if self.signum is not None:
            raise Interrupted(f"stopped by {signal.Signals(self.signum).name}; {outcome}", hint, self.signum)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the block a first signal only sets the request; on leaving, the old handlers are back.

    Outside the main thread, which alone receives signals, nothing is changed and nothing is ever asked.
    """
    request = StopRequest()

    def handle(signum: int, _frame: FrameType | None) -> None:
        if signum == signal.SIGUSR1:
            request.wants_save = True
            return
        if request:
            os._exit(128 + signum)
        request.signum = signum

    is_main = threading.current_thread() is threading.main_thread()  # only there may handlers be set
    previous = {signum: signal.signal(signum, handle) for signum in _SIGNALS if is_main}
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
