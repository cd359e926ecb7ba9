"""A run that is killed, stopped or out of space loses nothing, and resumed it ends as if nothing had happened."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puna.errors import CheckpointMismatch, DiskFull, FormatError, Interrupted, NonFiniteLoss, RunLocked, UsageError
from puna.files import lock_folder, sha256_file
from puna.jobs import run_folder, signals
from puna.jobs.recipe import dump_recipe
from puna.jobs.run_folder import RunFolder, check_replaceable, open_run
from puna.jobs.train import train
from puna.jobs.train_recipe import resumed_recipe
from puna.training import loop
from puna.training.checkpoint import latest_checkpoint
from puna.training.config import StepBudget
from puna.training.events import StepEvent
from puna.training.step import StepOutcome

CHILD = """
import os, signal, sys, tomllib
from pathlib import Path
import torch
from puna.errors import Interrupted
from puna.files import write_text
from puna.jobs.recipe import fill, read_recipe
from puna.jobs.train import train
from puna.jobs.train_recipe import TrainRecipe
from puna.training.events import StepEvent

torch.set_num_threads(1)
recipe, out, how, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def end(event):
    if isinstance(event, StepEvent) and event.step == step:
        if how == "exit":
            os._exit(9)
        os.kill(os.getpid(), signal.Signals[how])

try:
    train(fill(TrainRecipe, read_recipe(recipe)), out, resume=True, observers=(end,))
except Interrupted as error:
    print(error.message)
    sys.exit(error.exit_code)
"""


def run_child(recipe: Any, out: Path, how: str, step: int) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own, which ends itself after a step."""
    path = out.parent / f"{out.name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dump_recipe(recipe))
    command = [sys.executable, "-c", CHILD, str(path), str(out), how, str(step)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def facts(out: Path) -> dict[str, Any]:
    """Everything a run leaves but for the clock: weights and optimizer by their hashes, every line of the metrics."""
    last = latest_checkpoint(RunFolder(out).checkpoints)
    assert last is not None
    lines = [json.loads(line) for line in RunFolder(out).metrics.read_text().splitlines()]
    return {
        "steps": [path.name for path in sorted(last.parent.iterdir())],
        "state": sha256_file(last / "state.safetensors"),
        "model": sha256_file(out / "model" / "model.safetensors"),
        "metrics": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
    }


@pytest.fixture(scope="session")
def whole(world, build_recipe, tmp_path_factory) -> tuple[Any, dict[str, Any]]:
    """A recipe of 12 steps, and what it leaves when nothing goes wrong."""
    recipe = build_recipe(12, checkpoint_every=3)
    out = tmp_path_factory.mktemp("whole") / "run"
    train(recipe, out)
    return recipe, facts(out)


def test_a_run_killed_twice_ends_with_the_same_bits(whole, runs: Path) -> None:
    recipe, expected = whole
    first, second = sorted(random.Random(time.monotonic_ns()).sample(range(1, 12), 2))
    assert run_child(recipe, runs / "a", "exit", first).returncode == 9
    assert run_child(recipe, runs / "a", "SIGKILL", second).returncode == -9
    train(resumed_recipe(runs / "a"), runs / "a", resume=True)
    assert facts(runs / "a") == expected, (first, second)
    assert not list(runs.rglob("*.tmp-*"))


@pytest.mark.parametrize(("how", "code"), [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.nightly)])
def test_a_stopped_run_saves_first_and_goes_on(whole, runs: Path, how: str, code: int) -> None:
    recipe, expected = whole
    ended = run_child(recipe, runs / "a", how, 5)
    assert (ended.returncode, ended.stdout) == (code, f"stopped by {how}; saved step 5 in {runs / 'a'}\n")
    last = latest_checkpoint(RunFolder(runs / "a").checkpoints)
    assert last is not None
    assert last.name == "step_000005"
    train(recipe, runs / "a", resume=True)
    result = facts(runs / "a")
    assert {key: result[key] for key in ("state", "model", "metrics")} == {
        key: expected[key] for key in ("state", "model", "metrics")
    }


def test_a_run_can_be_watched_while_it_runs(build_recipe, runs: Path) -> None:
    folder, seen = RunFolder(runs / "a"), []

    def watch(event: Any) -> None:
        if isinstance(event, StepEvent):
            lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
            steps = [line["step"] for line in lines if line["event"] == "step"]
            assert steps == list(range(1, event.step))  # observers are told before the log, and it holds nothing back
            seen.append(folder.report.read_text() if folder.report.exists() else "")

    train(build_recipe(12, checkpoint_every=4), folder.path, observers=(watch,))
    at = {4: "step 4, 33.3", 8: "step 8, 66.7"}
    assert seen[:4] == [""] * 4
    for step, page in enumerate(seen, 1):
        if step > 4:
            assert "Still running" in page
            assert f"tail -f {folder.path}/metrics.jsonl" in page
            assert at[4 if step <= 8 else 8] in page
            assert page.rstrip().endswith("</html>")
    assert "Still running" not in folder.report.read_text()


def test_the_page_of_a_stopped_run_says_how_to_go_on(build_recipe, runs: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, StepEvent) and event.step == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(build_recipe(12), runs / "a", observers=(stop,))
    page = RunFolder(runs / "a").report.read_text()
    assert "saved step 5" in page
    assert f"puna train --resume --out {runs / 'a'}" in page


def test_a_run_stopped_before_its_first_step_says_that_nothing_was_learned(whole, runs: Path, monkeypatch) -> None:
    class Stopped(signals.StopRequest):
        def __init__(self) -> None:
            super().__init__()
            self.signum = signal.SIGINT

    with monkeypatch.context() as patch:
        patch.setattr(signals, "StopRequest", Stopped)
        with pytest.raises(Interrupted) as caught:
            train(whole[0], runs / "a")
    assert caught.value.message == f"stopped by SIGINT; nothing was learned yet in {runs / 'a'}"
    assert caught.value.hint == "--resume begins with the first step"
    train(whole[0], runs / "a", resume=True)
    assert facts(runs / "a") == whole[1]


def test_a_resume_leaves_a_recipe_that_has_not_changed_alone(build_recipe, runs: Path) -> None:
    folder = RunFolder(runs / "a")
    train(build_recipe(2), folder.path)
    folder.recipe.write_text("# mine\n" + folder.recipe.read_text())
    before = folder.recipe.read_text()
    train(resumed_recipe(folder.path), folder.path, resume=True)
    assert folder.recipe.read_text() == before
    train(resumed_recipe(folder.path, ["training.keep_checkpoints=7"]), folder.path, resume=True)
    assert "keep_checkpoints = 7" in folder.recipe.read_text()


def test_a_second_rollback_to_a_step_keeps_what_was_said_of_the_first(build_recipe, runs: Path, monkeypatch) -> None:
    reads, real = [], loop.train_step

    def poisoned(*arguments: Any, **named: Any) -> StepOutcome | None:
        reads.append(len(reads))
        outcome = real(*arguments, **named)
        assert outcome is not None
        return replace(outcome, nats=math.nan) if len(reads) in (4, 6) else outcome

    monkeypatch.setattr(loop, "train_step", poisoned)
    train(build_recipe(6, checkpoint_every=2, on_bad_step="rollback"), runs / "a")
    lines = [json.loads(line) for line in RunFolder(runs / "a").metrics.read_text().splitlines()]
    bad = [line for line in lines if line["event"] == "bad_step"]
    assert [(line["step"], line["action"]) for line in bad] == [(2, "rollback")] * 2
    assert bad[0]["where"] != bad[1]["where"]
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3, 4, 5, 6]


def test_a_page_that_finds_no_room_ends_no_run(build_recipe, runs: Path, monkeypatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise DiskFull("no space")

    monkeypatch.setattr("puna.jobs.train.write_unfinished_report", refuse)
    assert train(build_recipe(6, checkpoint_every=2), runs / "a").steps == 6


def test_a_finished_run_is_not_trained_again(world) -> None:
    before, events = facts(world.run), []
    again = train(resumed_recipe(world.run), world.run, resume=True, observers=(events.append,))
    assert events == []
    assert facts(world.run) == before
    assert replace(again, peak_bytes=0) == replace(world.trained, peak_bytes=0)


def full(times: int, save=run_folder.save_checkpoint):
    """A save that fails for lack of space the first `times` times."""
    left = [times]

    def attempt(*arguments: Any) -> Path:
        left[0] -= 1
        if left[0] >= 0:
            raise DiskFull("no space")
        return save(*arguments)

    return attempt


def test_a_full_disk_is_outlived_twice_in_a_row(whole, runs: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_folder, "save_checkpoint", full(2))
    train(whole[0], runs / "a")
    result = facts(runs / "a")
    assert [line["step"] for line in result["metrics"] if line["event"] == "notice"] == [3, 6]
    assert (result["state"], result["model"]) == (whole[1]["state"], whole[1]["model"])


def test_a_full_disk_ends_the_run_the_third_time_and_at_the_last_save(build_recipe, runs: Path, monkeypatch) -> None:
    events: list[Any] = []
    monkeypatch.setattr(run_folder, "save_checkpoint", full(3))
    with pytest.raises(DiskFull):
        train(build_recipe(12, checkpoint_every=1), runs / "a", observers=(events.append,))
    assert max(event.step for event in events) == 3
    monkeypatch.setattr(run_folder, "save_checkpoint", full(1))
    with pytest.raises(DiskFull):
        train(build_recipe(2), runs / "b")
    assert not (runs / "b" / "model").exists()


def test_a_full_disk_at_a_stop_is_not_called_saved(build_recipe, runs: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_folder, "save_checkpoint", full(1))

    def stop(event: object) -> None:
        if isinstance(event, StepEvent) and event.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(DiskFull):
        train(build_recipe(5), runs / "a", observers=(stop,))


def test_two_trainers_never_share_a_folder(build_recipe, runs: Path) -> None:
    with lock_folder(runs / "a"):
        started = time.monotonic()
        with pytest.raises(RunLocked, match="in use by process"):
            train(build_recipe(2), runs / "a")
        assert time.monotonic() - started < 1


def test_a_run_is_not_overwritten_and_not_continued_with_another_recipe(world, build_recipe) -> None:
    with pytest.raises(UsageError, match="already holds a run"):
        train(build_recipe(12), world.run)
    with pytest.raises(CheckpointMismatch, match="another recipe"):
        train(build_recipe(13), world.run, resume=True)


def test_an_edited_recipe_is_not_resumed(build_recipe, runs: Path) -> None:
    train(build_recipe(2), runs / "a")
    folder = RunFolder(runs / "a")
    folder.recipe.write_text(folder.recipe.read_text().replace("seed = 0", "seed = 1"))
    with pytest.raises(CheckpointMismatch, match="another recipe"):
        train(resumed_recipe(runs / "a"), runs / "a", resume=True)


def test_a_folder_of_something_else_is_left_alone(build_recipe, tmp_path: Path) -> None:
    (tmp_path / "notes.old").write_text("mine")
    (tmp_path / "notes").write_text("mine too")
    with pytest.raises(UsageError, match="holds no run, but notes"):
        train(build_recipe(2), tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        train(build_recipe(2), tmp_path / "notes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "notes.old"]


def test_a_run_that_failed_before_it_saved_leaves_the_folder_free(build_recipe, runs: Path) -> None:
    recipe = build_recipe(2)

    def spoil(event: object) -> None:
        raise NonFiniteLoss("nan")

    for wrong, observers in ((replace(recipe, validation=runs / "none"), ()), (recipe, (spoil,))):
        with pytest.raises((FormatError, NonFiniteLoss)):
            train(wrong, runs / "a", observers=observers)
        assert not RunFolder(runs / "a").recipe.exists()
    train(recipe, runs / "a")


def test_what_a_killed_save_left_is_swept(build_recipe, runs: Path) -> None:
    recipe = replace(build_recipe(2), training=replace(build_recipe(2).training, budget=StepBudget(steps=2)))
    train(recipe, runs / "a")
    stray = RunFolder(runs / "a").checkpoints / "step_000009.tmp-1"
    stray.mkdir()
    with open_run(runs / "a", recipe, resume=True):
        assert not stray.exists()


def test_only_what_is_ours_or_empty_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for free in ("empty", "none"):
        check_replaceable(tmp_path / free)
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="holds something else"):
            check_replaceable(taken)
