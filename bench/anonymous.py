"""A process's anonymous memory, now and at its peak, for the benches that judge by it (Linux)."""

import threading
from pathlib import Path


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Sampler:
    """The largest anonymous memory while it runs. Args: every: seconds between two looks."""

    def __init__(self, every: float) -> None:
        self.peak, self._every, self._stop = anonymous_bytes(), every, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.peak = max(self.peak, anonymous_bytes())
