"""Bars with rate and time left on a terminal, plain lines in a pipe."""

import os
import pty
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import pytest

from puna.cli.console import print_table, progress_line
from puna.cli.progress import training_progress
from puna.jobs import doctor
from puna.training.events import SampleEvent, StepEvent, ValidationEvent

Puna = Callable[..., Any]
COLUMNS = ("", "value")
ROWS = (("parameters", "1,000"), ("[bold]name[/bold]", "[3]"))


class Terminal:
    """The far end of a pseudo-terminal, read all the while: a full one would stop who writes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._data = descriptor, b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def read(self) -> str:
        """What has been written so far."""
        size = -1
        while size != len(self._data):
            size = len(self._data)
            time.sleep(0.2)
        return self._data.decode()

    def close(self) -> None:
        """After the near end is closed."""
        self._thread.join()
        os.close(self._descriptor)

    def _run(self) -> None:
        with suppress(OSError):  # the near end was closed
            while piece := os.read(self._descriptor, 1 << 16):
                self._data += piece


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[Terminal]:
    """Within the block the named streams of `sys` are a terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    far, near = pty.openpty()
    file: TextIO = os.fdopen(near, "w", encoding="utf-8", buffering=1)
    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(sys, name, file)
        screen = Terminal(far)
        yield screen
    file.close()
    screen.close()


def test_training_draws_a_bar_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, puna: Puna, made: Any, tmp_path: Any
) -> None:
    run = ("train", "--model", "tiny", "--data", made.shards, "--out", tmp_path / "run", "--steps", 80)
    monkeypatch.setattr(doctor, "_MIN_SECONDS", 0.0)
    with terminal(monkeypatch, "stderr") as screen:
        ending = puna(*run, "--batch", 2, "--seq", 32, "--precision", "float32", "--threads", 1, "--json")
        drawn = screen.read()
    assert ending.json["steps"] == 80
    assert "\x1b[" in drawn
    assert "training" in drawn
    assert re.search(r"step \d+, loss \d\.\d+, [\d.]+K? tok/s, \d+% of ceiling, [\d.]+ [MG]B", drawn)
    assert re.search(r"\d:\d\d:\d\d", drawn)


def test_a_full_line_fits_a_hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"tokens": 10**8, "nats": 3.45678, "learning_rate": 1e-3, "gradient_norm": 1.0, "seconds": 2.4e5}
    with terminal(monkeypatch, "stderr") as screen:
        monkeypatch.setenv("COLUMNS", "100")
        with training_progress("training", lambda: 1000.0) as observe:
            observe(ValidationEvent(step=12345, tokens=10**8, nats=3.21))
            observe(SampleEvent(step=12345, prompt="the", text=" llama"))
            observe(StepEvent(step=12345, progress=0.5, **facts))
        drawn = screen.read()
    lines = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", drawn)]
    full = [line for line in lines if "12345" in line]
    assert full
    for line in full:
        assert len(line) <= 100
        assert re.search(r"loss 3.457, held-out 3.210, 417 tok/s, 42% of ceiling, [\d.]+ [MG]B .*-?:--", line)


def test_a_bar_sweeps_anew_for_the_next_task(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "stderr") as screen:
        with progress_line("learning") as update:
            for share in (0.5, 1.0, 0.25):
                update(share, f"[{share}]")
        drawn = screen.read()
    assert "[0.25]" in drawn  # shown as it is: no markup


def test_in_a_pipe_progress_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_line("training") as update:
        update(0.1, "step 1")
        update(1.0, "step 10")
    captured = capsys.readouterr()
    assert captured.err == "training: 100% step 10\n"
    assert captured.out == ""


def test_in_a_pipe_no_ceiling_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"tokens": 100, "nats": 3.45678, "learning_rate": 1e-3, "gradient_norm": 1.0, "seconds": 0.1}
    with training_progress("training", lambda: pytest.fail("measured")) as observe:
        observe(StepEvent(step=5, progress=1.0, **facts))
    assert capsys.readouterr().err == "training: 100% step 5, loss 3.457, 1,000 tokens/s\n"


def test_a_table_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "stdout") as screen:
        print_table(COLUMNS, ROWS, title="tiny")
        drawn = screen.read()
    assert "tiny" in drawn
    assert re.search(r"\[bold\]name\[/bold\] +\[3\]", drawn)
    assert "\t" not in drawn


def test_in_a_pipe_a_table_is_lines_of_cells(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out == "\tvalue\nparameters\t1,000\n[bold]name[/bold]\t[3]\n"


def test_plans_stand_side_by_side_with_the_cache(puna: Puna) -> None:
    rows = [line.split("\t") for line in puna("plan", "tiny", "llama-3-8b").out.splitlines()]
    table = {name: cells for name, *cells in rows}
    assert table[""] == ["tiny", "llama-3-8b"]
    assert table["cache per token"] == ["256 B", "131,072 B"]
    assert table["parameters"][1] == "8,030,261,248"
    assert "key-value cache" in table


def test_on_a_terminal_one_plan_is_drawn_as_bars_too(monkeypatch: pytest.MonkeyPatch, puna: Puna) -> None:
    with terminal(monkeypatch, "stdout") as screen:
        puna("plan", "llama-3-8b", "--train", "lora", "--method", "dora")
        lines = screen.read().splitlines()
    bars = [line for line in lines if "#" in line]
    assert [line.split()[0] for line in bars][-1] == "peak"
    assert bars[-1].endswith("  100%  " + 60 * "#")
    assert max(map(len, bars)) <= 100
    assert "#" not in puna("plan", "llama-3-8b").out


def test_a_dry_run_is_a_table(puna: Puna, made: Any, tmp_path: Any) -> None:
    run = ("train", "--model", "tiny", "--data", made.shards, "--out", tmp_path / "run", "--dry-run")
    assert puna(*run, "--precision", "float32").out.startswith("\tplanned\nparameters\t")


def test_so_is_that_of_an_adaptation_which_needs_no_folder(puna: Puna, made: Any) -> None:
    lines = puna("adapt", made.trained, made.text, "--seq", 32, "--precision", "float32", "--dry-run").out.splitlines()
    names = ["", "parameters", "trainable parameters", "peak memory", "rows", "epochs", "records"]
    assert [line.split("\t")[0] for line in lines] == names


def test_what_cannot_fit_is_refused_unless_anyway(puna: Puna, made: Any, tmp_path: Any) -> None:
    huge = ("--precision", "float32", "--batch", 10**7, "--seq", 32, "--out", tmp_path / "run")
    train = puna("train", "--model", "tiny", "--data", made.shards, *huge)
    adapt = puna("adapt", made.trained, made.text, *huge)
    for ending in (train, adapt):
        ending.failed(1, "planned peak: expected at most", "activations", "hint: ", "micro_batch=", "--anyway")
    assert not (tmp_path / "run").exists()
