"""Where a job runs: device and threads, from what was asked."""

import psutil
import torch

from puna.errors import UsageError
from puna.jobs.container import container_room

__all__ = ["available_bytes", "choose_device", "choose_dtype", "use_threads"]

_DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(asked: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU. Errors: UsageError where the device is not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{asked}': {str(error).splitlines()[0]}", "puna doctor lists the devices") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device '{asked}': expected cpu or cuda", "puna doctor lists the devices")
    return device


def choose_dtype(precision: str) -> torch.dtype | None:
    """The type that a model is loaded in to be used, not trained; `auto` leaves it to load: float32, exact everywhere, but
    for a quantised base of a 16-bit file.
    """
    return _DTYPES[precision]


def available_bytes(device: torch.device) -> int:
    """Memory that a job could take now: what is free of a CUDA device's, else what the system can give without swapping, and
    what its container's limit leaves.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free, room = int(psutil.virtual_memory().available), container_room()
    return free if room is None else min(free, room)


def use_threads(threads: int) -> None:
    """Set torch's CPU threads; 0 leaves its choice."""
    if threads < 0:
        raise UsageError(f"--threads: expected 0 or more, got {threads}")
    if threads:
        torch.set_num_threads(threads)
