"""The largest memory that a stretch of work held, measured: the allocator's peak on CUDA, resident memory elsewhere."""

import resource
import sys
from pathlib import Path

import psutil
import torch

__all__ = ["PeakMemory"]

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
            self.start_bytes = int(psutil.Process().memory_info().rss)

    def growth_bytes(self) -> int:
        """Peak minus what was held at the start."""
        peak = torch.cuda.max_memory_allocated(self._device) if self._cuda else _high_water_bytes()
        return max(0, peak - self.start_bytes)


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
