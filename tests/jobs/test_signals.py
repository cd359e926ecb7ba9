"""The first signal asks, and the handlers are put back."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from puna.errors import Interrupted
from puna.jobs.signals import stop_request


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_sets_the_request_and_becomes_the_exit_code(signum: signal.Signals, code: int) -> None:
    before = signal.getsignal(signum)
    with stop_request() as stop:
        assert not stop
        stop.raise_if_asked("nothing")
        os.kill(os.getpid(), signum)
        assert stop
    assert signal.getsignal(signum) is before
    with pytest.raises(Interrupted, match=f"stopped by {signum.name}; saved step 3") as caught:
        stop.raise_if_asked("saved step 3")
    assert caught.value.exit_code == code


def test_sigusr1_asks_to_save_once_and_not_to_stop() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with stop_request() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (bool(stop), stop.take_save(), stop.take_save()) == (False, True, False)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_second_signal_ends_at_once() -> None:
    code = (
        "import os, signal\n"
        "from puna.jobs.signals import stop_request\n"
        "with stop_request():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT)\n"
        "print('never')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (130, b"")


def test_another_thread_may_train_too() -> None:
    asked: list[bool] = []

    def work() -> None:
        with stop_request() as stop:
            asked.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
