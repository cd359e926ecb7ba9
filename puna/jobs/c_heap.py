"""What the C library keeps of freed memory, and having it keep less.

glibc leaves freed blocks below a threshold in its heap, and raises the threshold to 32 MiB as such blocks are freed: a training
step then holds up to a third more than its tensors need (docs/findings.md 18). With the threshold held at a megabyte each
larger block has pages of its own, given back at once; a step takes 4 to 12 % longer, since the system clears pages anew.
"""

import ctypes
import platform

__all__ = ["LARGEST_SLACK", "give_back_freed", "keep_freed"]

LARGEST_SLACK = 0.4
"""Of what a plan says, the most that the heap has been seen to keep beside it, rounded up."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # man 3 mallopt
_BLOCK, _LARGEST = 1 << 20, 1 << 25


def give_back_freed() -> bool:
    """From now on give freed blocks of a megabyte or more back at once; False where the C library is another one."""
    return _hold(_BLOCK)


def keep_freed() -> bool:
    """From now on keep what glibc would by its own rule, once blocks of 32 MiB have been freed."""
    return _hold(_LARGEST)


def _hold(threshold: int) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, threshold) and mallopt(_M_TRIM_THRESHOLD, 2 * threshold))
