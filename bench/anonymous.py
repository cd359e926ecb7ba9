"""A process's anonymous memory, now and over time, for the benches that judge by it (Linux)."""

import threading
from pathlib import Path


def anonymous_bytes(process: int | str = "self") -> int:
    """Memory of a process that no file backs; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


class Sampler:
    """A process's anonymous memory while it is watched, the first look before. Args: every: seconds between two looks."""

    def __init__(self, every: float, process: int | str = "self") -> None:
        self._every, self._process, self._stop = every, process, threading.Event()
        self.samples = [anonymous_bytes(process)]
        self._thread = threading.Thread(target=self._run)

    @property
    def peak(self) -> int:
        """The largest so far, in bytes."""
        return max(self.samples)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.samples.append(anonymous_bytes(self._process))
