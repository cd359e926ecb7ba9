"""The peak counts what was held for a moment, and starts anew for each measurement."""

import sys

import pytest
import torch

from puna.jobs.peak import PeakMemory

BLOCK = 64 << 20
CPU = torch.device("cpu")


def test_a_moment_counts() -> None:
    peak = PeakMemory(CPU)
    torch.ones(BLOCK // 4).sum()
    assert BLOCK * 0.9 < peak.growth_bytes() < BLOCK * 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the high-water mark")
def test_an_earlier_peak_is_forgotten() -> None:
    torch.ones(BLOCK // 4).sum()
    assert PeakMemory(CPU).growth_bytes() < BLOCK / 4
