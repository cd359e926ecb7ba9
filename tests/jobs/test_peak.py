"""The peak counts what was held for a moment, and starts anew for each measurement."""

import gc
import mmap
import sys

import pytest
import torch

from puna.jobs.peak import PeakMemory

BLOCK = 64 << 20
CPU = torch.device("cpu")


def _hold_for_a_moment() -> None:
    """Touch fresh pages and give them back; a tensor's own bytes may come from a heap that is resident already."""
    gc.collect()
    pages = mmap.mmap(-1, BLOCK)
    torch.frombuffer(pages, dtype=torch.uint8).fill_(1)
    gc.collect()


def test_a_moment_counts() -> None:
    gc.collect()
    peak = PeakMemory(CPU)
    _hold_for_a_moment()
    assert BLOCK * 0.9 < peak.growth_bytes() < BLOCK * 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the high-water mark")
def test_what_is_held_in_a_pause_is_not_counted_and_an_earlier_peak_stays() -> None:
    gc.collect()
    peak = PeakMemory(CPU)
    with peak.paused():
        kept = mmap.mmap(-1, BLOCK)
        torch.frombuffer(kept, dtype=torch.uint8).fill_(1)
        _hold_for_a_moment()
    assert peak.growth_bytes() < BLOCK / 4
    _hold_for_a_moment()
    with peak.paused():
        pass
    assert BLOCK * 0.9 < peak.growth_bytes() < BLOCK * 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the high-water mark")
def test_an_earlier_peak_is_forgotten() -> None:
    _hold_for_a_moment()
    assert PeakMemory(CPU).growth_bytes() < BLOCK / 4
