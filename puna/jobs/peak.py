"""The largest memory that a stretch of work held, measured: the allocator's peak on CUDA, resident memory elsewhere."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

__all__ = ["PeakMemory", "held_bytes"]

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Growth of the peak over what was held when this was made, in bytes.

    Linux resets its high-water mark for each measurement; elsewhere the process's peak so far is the floor.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
            self.start_bytes = torch.cuda.memory_allocated(device)
        else:
            _reset_high_water()
            self.start_bytes = held_bytes()
        self._earlier_bytes = 0

    def growth_bytes(self) -> int:
        """Peak minus what was held at the start."""
        peak = torch.cuda.max_memory_allocated(self._device) if self._cuda else _high_water_bytes()
        return max(self._earlier_bytes, peak - self.start_bytes)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what the block uses, and what it goes on holding: a report's libraries are not the training's."""
        self._earlier_bytes = self.growth_bytes()
        before = held_bytes()
        yield
        if not self._cuda:
            self.start_bytes += max(0, held_bytes() - before)
            _reset_high_water()


def held_bytes() -> int:
    """What this process holds now: its resident memory."""
    return int(psutil.Process().memory_info().rss)


def _reset_high_water() -> None:
    try:
        _CLEAR.write_bytes(b"5")
    except OSError:
        return  # not Linux, or not allowed: the peak so far remains


def _high_water_bytes() -> int:
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
