"""Device, type and threads, from what was asked."""

import pytest
import torch

from puna.errors import UsageError
from puna.jobs.machine import choose_device, choose_dtype, use_threads


def test_devices_that_are_here_are_found_and_others_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "gpu", "meta", ""):
        with pytest.raises(UsageError, match=f"device '{name}'"):
            choose_device(name)


def test_auto_leaves_the_type_to_the_base() -> None:
    assert choose_dtype("auto") is None
    assert choose_dtype("float32") == torch.float32
    assert (choose_dtype("bfloat16"), choose_dtype("float16")) == (torch.bfloat16, torch.float16)


def test_threads_are_set_and_zero_leaves_them() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(2)
        assert torch.get_num_threads() == 2
        use_threads(0)
        assert torch.get_num_threads() == 2
        with pytest.raises(UsageError, match="--threads: expected 0 or more, got -1"):
            use_threads(-1)
    finally:
        torch.set_num_threads(before)
