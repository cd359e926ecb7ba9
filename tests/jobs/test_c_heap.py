"""Where memory is short, freed blocks go back to the system: a process of its own shows it, since there is no way back."""

import platform
import subprocess
import sys

import pytest
import torch

from puna.jobs import fitting
from puna.jobs.c_heap import give_back_freed
from puna.jobs.fitting import device_memory, ensure_fits
from puna.jobs.train import planned_settings
from puna.training.config import StepBudget, TrainingConfig

MIB = 1 << 20
CHILD = f"""
import sys
import numpy as np
from puna.jobs.c_heap import give_back_freed

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

if sys.argv[1] == "tight":
    assert give_back_freed()
np.ones(31 * {MIB}, np.uint8)  # freed, it raises glibc's threshold to as much
before, blocks = held(), [np.ones(4 * {MIB}, np.uint8) for _ in range(20)]
last = np.ones(4 * {MIB}, np.uint8)
del blocks
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_are_given_back_where_they_were_kept() -> None:
    kept, tight = (
        int(subprocess.run([sys.executable, "-c", CHILD, how], check=True, capture_output=True, text=True).stdout)
        for how in ("usual", "tight")
    )
    assert kept > 60 * MIB
    assert tight < 10 * MIB


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not give_back_freed()


@pytest.mark.parametrize(("device", "room", "expected"), [("cpu", 1.05, 1), ("cpu", 1.5, 0), ("cuda", 1.05, 0)])
def test_a_run_that_only_just_fits_is_frugal(tiny_config, monkeypatch, device: str, room: float, expected: int) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(fitting, "give_back_freed", lambda: asked.append(True))
    settings, place = planned_settings(TrainingConfig(budget=StepBudget(steps=1), seq=64)), torch.device(device)
    needed = device_memory(tiny_config, settings, place).total
    ensure_fits(tiny_config, settings, place, memory_bytes=int(room * needed))
    assert len(asked) == expected
