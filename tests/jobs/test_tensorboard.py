"""Event files say what the metrics say, each step once; without tensorboard everything else works."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from puna.errors import Interrupted, MissingExtra
from puna.files import sha256_file
from puna.jobs.run_folder import RunFolder
from puna.jobs.tensorboard import event_files
from puna.jobs.train import train
from puna.training.events import StepEvent, ValidationEvent

STEP = {"tokens": 10, "nats": 3.0, "learning_rate": 0.1, "gradient_norm": 1.0, "seconds": 1.0, "progress": 0.5}


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def steps(board: EventAccumulator, tag: str) -> list[int]:
    return [each.step for each in board.Scalars(tag)]


def test_the_curves_are_those_of_the_metrics(build_recipe, runs: Path) -> None:
    recipe = build_recipe(6)
    train(recipe, runs / "a")
    folder = RunFolder(runs / "a")
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    board, source = read(folder.tensorboard), str(recipe.data[0].path).strip("/")
    for event, keys in {
        "step": {"nats": "loss/training", "learning_rate": "learning_rate", "gradient_norm": "gradient_norm"},
        "validation": {"nats": "loss/held_out"},
    }.items():
        for key, tag in keys.items():
            expected = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines if line["event"] == event]
            assert [(each.step, each.value) for each in board.Scalars(tag)] == expected
    assert all(each.value > 0 for each in board.Scalars("tokens_per_second"))
    assert steps(board, f"held_out/{source}") == [4, 6]
    samples = [line["text"] for line in lines if line["event"] == "sample"]
    written = [each.tensor_proto.string_val[0].decode() for each in board.Tensors("sample/text_summary")]
    assert len(samples) == len(written) == 2
    for sample, text in zip(samples, written, strict=True):
        assert sample.splitlines()[0] in text


def test_a_resumed_run_shows_each_step_once(build_recipe, runs: Path) -> None:
    recipe, board = build_recipe(8, checkpoint_every=3), RunFolder(runs / "a").tensorboard

    def fail(event: Any) -> None:
        if isinstance(event, StepEvent) and event.step == 6:
            raise KeyError("killed")

    def stop(event: Any) -> None:
        if isinstance(event, StepEvent) and event.step == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyError):
        train(recipe, runs / "a", observers=(fail,))
    assert steps(read(board), "loss/training") == [1, 2, 3, 4, 5]
    with pytest.raises(Interrupted):
        train(recipe, runs / "a", resume=True, observers=(stop,))
    assert steps(read(board), "loss/training") == [1, 2, 3, 4, 5]
    train(recipe, runs / "a", resume=True)
    files = sorted(board.iterdir())
    assert steps(read(board), "loss/training") == list(range(1, 9))
    assert steps(read(board), "loss/held_out") == [3, 4, 6, 8]
    train(recipe, runs / "a", resume=True)
    assert sorted(board.iterdir()) == files


def test_sittings_within_a_second_keep_their_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))  # "10" sorts before "9"
    for step in (1, 2):
        with event_files(tmp_path, wanted=True) as (write,):
            write(StepEvent(step=step, **STEP))
    assert steps(read(tmp_path), "loss/training") == [1, 2]


def test_without_tensorboard_a_run_ends_with_the_same_bits(build_recipe, world, runs: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    train(build_recipe(12), runs / "a")
    assert sha256_file(runs / "a/model/model.safetensors") == sha256_file(world.run / "model/model.safetensors")
    assert not RunFolder(runs / "a").tensorboard.exists()
    with pytest.raises(MissingExtra, match="writing TensorBoard files needs tensorboard") as caught:
        train(build_recipe(12), runs / "b", tensorboard=True)
    assert caught.value.hint == "pip install 'puna[tensorboard]'"
    assert not RunFolder(runs / "b").recipe.exists()


def test_they_can_be_left_out(build_recipe, runs: Path) -> None:
    train(build_recipe(2), runs / "a", tensorboard=False)
    assert not RunFolder(runs / "a").tensorboard.exists()


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with event_files(tmp_path / "file", wanted=True) as (write,):
        write(StepEvent(step=1, **STEP))
        write(ValidationEvent(step=1, tokens=10, nats=3.0))
