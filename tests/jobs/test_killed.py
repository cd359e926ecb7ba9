"""A trainer killed at any moment and resumed ends with the bits of one that was not; what is on disk loads, old or new."""

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puna.files import sha256_file
from puna.jobs import tokens
from puna.jobs.run_folder import RunFolder
from puna.jobs.train_recipe import DataSource, TrainRecipe, train_recipe
from puna.training.checkpoint import latest_checkpoint
from tests.jobs.killing import Trainers, trainers

IS_NIGHTLY = os.environ.get("PUNA_COUNTS") == "nightly"
KILLS = 200 if IS_NIGHTLY else 10
OTHER_KILLS = 30 if IS_NIGHTLY else 2
STEPS, EVERY, EPOCH = 12, 3, 5  # an epoch is 20 windows, 5 steps of 2 micro-batches of 2
OF_THE_CLOCK = {"seconds", "peak_bytes"}


@pytest.fixture(scope="session")
def forks() -> Iterator[Trainers]:
    """Trainers by the dozen."""
    with trainers() as running:
        yield running


@pytest.fixture(scope="session")
def recipe(world: Any, tmp_path_factory: pytest.TempPathFactory) -> TrainRecipe:
    """12 steps over an epoch of 5, accumulated twice, warmed up for 3, saved every 3."""
    folder = tmp_path_factory.mktemp("epoch")
    texts = [world.text / f"{number:02d}.txt" for number in range(5)]
    count = tokens.build(texts, world.tokenizer, folder / "shards").tokens
    training = {"batch": 4, "micro_batch": 2, "seq": (count - 1) // 20, "warmup": 0.25, "precision": "float32"}
    training |= {"budget": {"kind": "steps", "steps": STEPS}, "checkpoint_every": EVERY, "validate_every": 4}
    sources = [DataSource(path=folder / "shards")]
    return train_recipe(
        model="tiny", data=sources, validation=folder / "shards", training=training, settings=["model.n_layers=1"]
    )


@pytest.fixture(scope="session")
def wholes(recipe: TrainRecipe, forks: Trainers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each kind of run: its recipe and order, what it leaves when nothing goes wrong, and its seconds."""
    training, result = recipe.training, {}
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "plain": ({}, {}),
        "float16": ({"precision": "float16"}, {"poison": [0, 4, 5]}),
        "rollback": ({"on_bad_step": "rollback"}, {"poison": [4, 10]}),
    }
    for kind, (changes, order) in kinds.items():
        own = replace(recipe, training=replace(training, **changes))
        out = tmp_path_factory.mktemp(kind) / "run"
        ended = forks(own, out, **order)
        assert ended["status"] == 0, ended
        result[kind] = (own, order, facts(out), ended["seconds"])
    return result


def facts(out: Path) -> dict[str, Any]:
    """What a run leaves but for the clock: every line of its log, its counters, and everything else by its SHA-256."""
    last = latest_checkpoint(RunFolder(out).checkpoints)
    assert last is not None
    lines = [json.loads(line) for line in RunFolder(out).metrics.read_text().splitlines()]
    counters = json.loads((last / "state.json").read_text())
    counters["done"] = timeless(counters["done"])
    return {
        "steps": sorted(path.name for path in last.parent.iterdir()),
        "counters": {key: value for key, value in timeless(counters).items() if key != "metrics_bytes"},
        "state": sha256_file(last / "state.safetensors"),
        "model": sha256_file(out / "model" / "model.safetensors"),
        "metrics": [timeless(line) for line in lines],
    }


def timeless(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in OF_THE_CLOCK}


def logged(out: Path) -> int:
    """The last step of which the log tells, in whole lines."""
    if not RunFolder(out).metrics.exists():
        return 0
    lines = RunFolder(out).metrics.read_text().split("\n")[:-1]
    return max((event["step"] for event in map(json.loads, lines) if event["event"] == "step"), default=0)


def saved(out: Path) -> int:
    """The step of the latest checkpoint."""
    last = latest_checkpoint(RunFolder(out).checkpoints)
    return 0 if last is None else int(last.name.removeprefix("step_"))


def kill_at(forks: Trainers, whole: tuple[Any, ...], out: Path, seconds: float) -> None:
    """Kill a trainer after some time; what it had done and not saved is one interval at most."""
    ended = forks(whole[0], out, **whole[1], signal="SIGKILL", after=seconds)
    assert ended["status"] in (-9, 0), ended
    assert 0 <= logged(out) - saved(out) <= EVERY


def assert_ends_the_same(forks: Trainers, whole: tuple[Any, ...], out: Path, why: object) -> None:
    """Go on to the end: the same bits, and nothing stray."""
    ended = forks(whole[0], out, **whole[1])
    assert ended["status"] == 0, (why, ended)
    assert facts(out) == whole[2], why
    assert not [path for path in out.rglob("*") if ".tmp-" in path.name or path.suffix == ".puna-old"]


@pytest.mark.parametrize("turn", range(KILLS))
def test_killed_at_any_time_a_run_ends_with_the_same_bits(wholes, forks, tmp_path: Path, turn: int) -> None:
    whole = wholes["plain"]
    seconds = random.Random(time.monotonic_ns()).uniform(0, whole[3])
    kill_at(forks, whole, tmp_path / "run", seconds)
    assert_ends_the_same(forks, whole, tmp_path / "run", seconds)


@pytest.mark.parametrize("turn", range(OTHER_KILLS))
@pytest.mark.parametrize("kind", ["float16", "rollback"])
def test_a_loss_scale_and_a_rollback_are_resumed_to_the_bit_too(wholes, forks, tmp_path: Path, kind, turn) -> None:
    whole = wholes[kind]
    seconds = random.Random(time.monotonic_ns()).uniform(0, whole[3])
    kill_at(forks, whole, tmp_path / "run", seconds)
    assert_ends_the_same(forks, whole, tmp_path / "run", seconds)


@pytest.mark.parametrize("turn", range(OTHER_KILLS))
def test_killed_again_during_the_resume_it_still_does(wholes, forks, tmp_path: Path, turn: int) -> None:
    whole, draw = wholes["plain"], random.Random(time.monotonic_ns())
    moments = [draw.uniform(0, whole[3]), draw.uniform(0, whole[3] / 2)]
    for seconds in moments:
        kill_at(forks, whole, tmp_path / "run", seconds)
    assert_ends_the_same(forks, whole, tmp_path / "run", moments)


def test_the_runs_that_are_killed_meet_what_they_are_meant_to_meet(wholes) -> None:
    def bad(kind: str) -> list[str]:
        return [line["action"] for line in wholes[kind][2]["metrics"] if line["event"] == "bad_step"]

    assert (bad("plain"), bad("float16"), bad("rollback")) == ([], ["overflow"] * 3, ["rollback"] * 2)
    assert wholes["float16"][2]["counters"]["loss_scale"] == 65536 / 8


@pytest.mark.parametrize(
    ("point", "at", "found"),
    [
        ("after mkdir", 1, 3),
        ("mid tensor", 2, 3),
        ("before fsync", 1, 3),
        ("after fsync", 1, 3),
        ("before manifest", 1, 3),
        ("after manifest", 1, 3),
        ("before rename", 1, 3),
        ("after rename", 1, 6),
        ("mid prune", 1, 9),
        ("mid log line", 8, 3),
        ("mid export", 2, 12),
        ("in backward", 10, 3),
        ("in the update", 5, 3),
        ("in backward", 1, 0),
    ],
)
def test_killed_at_a_named_point_the_old_step_or_the_new_one_loads(
    wholes, forks, tmp_path: Path, point: str, at: int, found: int
) -> None:
    whole, out = wholes["plain"], tmp_path / "run"
    assert forks(whole[0], out, point=point, at=at)["status"] == -9
    assert saved(out) == found
    assert_ends_the_same(forks, whole, out, point)


def test_killed_while_it_reads_a_checkpoint_it_goes_on_from_there(wholes, forks, tmp_path: Path) -> None:
    whole, out = wholes["plain"], tmp_path / "run"
    assert forks(whole[0], out, point="in the update", at=5)["status"] == -9
    assert forks(whole[0], out, point="mid resume", at=1)["status"] == -9
    assert saved(out) == 3
    assert_ends_the_same(forks, whole, out, "mid resume")


def test_a_rollback_after_a_stop_goes_where_it_would_have_gone(wholes, forks, tmp_path: Path) -> None:
    whole, out = wholes["rollback"], tmp_path / "run"
    assert forks(whole[0], out, **whole[1], stop=4)["status"] == 143
    assert saved(out) == 4  # the read that follows is bad; nobody rolls back to a step that a signal had saved
    assert_ends_the_same(forks, whole, out, "stop at 4")


def test_the_scale_of_float16_is_where_it_was(wholes, forks, tmp_path: Path) -> None:
    whole, out = wholes["float16"], tmp_path / "run"
    assert forks(whole[0], out, **whole[1], point="in the update", at=8)["status"] == -9
    assert saved(out) == 6
    assert_ends_the_same(forks, whole, out, "after three overflows")


@pytest.mark.parametrize("step", [1, 3, EPOCH, EPOCH + 1, STEPS - 1, STEPS])
def test_a_run_stopped_after_any_step_goes_on_from_that_step(wholes, forks, tmp_path: Path, step: int) -> None:
    """The first; the end of the warm-up; the last of an epoch; the first of the next; the last but one; the last."""
    whole, out = wholes["plain"], tmp_path / "run"
    ended = forks(whole[0], out, stop=step)
    assert ended["status"] == 143, ended
    assert saved(out) == step
    forks(whole[0], out)
    result = facts(out)
    for name in ("state", "model", "metrics", "counters"):
        assert result[name] == whole[2][name], name
