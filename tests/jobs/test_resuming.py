"""What may change when a run goes on, what may not, and what is only told."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from puna.errors import CheckpointMismatch, Interrupted
from puna.jobs import resuming
from puna.jobs.recipe import dump_recipe
from puna.jobs.resuming import MAY_CHANGE, check_recipe, check_record, other_machine
from puna.jobs.run_folder import RunFolder
from puna.jobs.train import train
from puna.jobs.train_recipe import resumed_recipe
from puna.training.checkpoint import latest_checkpoint, machine_record
from puna.training.events import NoticeEvent, StepEvent


def events(run: Path, kind: str) -> list[dict]:
    lines = RunFolder(run).metrics.read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def interrupted(recipe, out: Path, after: int) -> None:
    def stop(event: object) -> None:
        if isinstance(event, StepEvent) and event.step == after:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(recipe, out, observers=(stop,))
    assert latest_checkpoint(RunFolder(out).checkpoints).name == f"step_{after:06d}"


def test_a_changed_setting_is_named_with_what_it_was_and_is_and_what_may_change(build_recipe) -> None:
    recipe = build_recipe(4)
    other = replace(recipe, training=replace(recipe.training, seed=1, learning_rate=0.5))
    with pytest.raises(CheckpointMismatch) as caught:
        check_recipe(Path("r"), dump_recipe(recipe), dump_recipe(other))
    assert "training.seed was 0, is 1" in caught.value.message
    assert f"training.learning_rate was {recipe.training.learning_rate}, is 0.5" in caught.value.message
    assert all(name in caught.value.hint for name in MAY_CHANGE)


def test_other_data_are_named(build_recipe) -> None:
    recipe = dump_recipe(build_recipe(4))
    record = {"recipe": recipe, "data": {"prose": "a", "code": "b"}}
    check_record(Path("c"), record, recipe, {"code": "b", "prose": "a"})
    with pytest.raises(CheckpointMismatch, match="other data: code has changed"):
        check_record(Path("c"), record, recipe, {"prose": "a", "code": "c"})


def test_what_may_change_changes_no_bit_of_the_result(build_recipe, runs: Path) -> None:
    recipe = build_recipe(6)
    whole = train(recipe, runs / "whole")
    interrupted(recipe, runs / "a", 4)
    changed = resumed_recipe(
        runs / "a", ["training.validate_every=1", "training.on_bad_step=skip", "training.checkpoint_activations=true"]
    )
    assert train(changed, runs / "a", resume=True).loss == whole.loss
    assert [line["nats"] for line in events(runs / "a", "step")] == [
        line["nats"] for line in events(runs / "whole", "step")
    ]
    assert resumed_recipe(runs / "a") == changed


@pytest.mark.parametrize(("name", "value"), [("threads", 77), ("torch", "1.0"), ("cpu", "Z80")])
def test_another_machine_is_told_of_and_goes_on(build_recipe, runs: Path, monkeypatch, name, value) -> None:
    recipe = build_recipe(6)
    interrupted(recipe, runs / "a", 4)
    monkeypatch.setattr(resuming, "machine_record", lambda: {**machine_record(), name: value})
    heard = []
    train(recipe, runs / "a", resume=True, observers=(heard.append,))
    [notice] = [event for event in heard if isinstance(event, NoticeEvent)]
    assert f"{name} {machine_record()[name]} then, {value} now" in notice.message
    assert [line["message"] for line in events(runs / "a", "notice")] == [notice.message]


def test_the_same_machine_is_not_told_of() -> None:
    assert other_machine(machine_record()) is None
