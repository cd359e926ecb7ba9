"""A checkpoint is loaded whole and unchanged, or refused by name."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from puna.errors import CheckpointMismatch, DiskFull, FormatError
from puna.files import MANIFEST, staged_folder
from puna.training import checkpoint
from puna.training.checkpoint import (
    TrainState,
    latest_checkpoint,
    load_checkpoint,
    machine_record,
    prune_checkpoints,
    save_checkpoint,
)
from puna.training.config import Done, StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer, trainable

CONFIG = TrainingConfig(budget=StepBudget(steps=1))
RECORD = {"recipe": "abc"}


def worked(model: Any, seed: int = 0, config: TrainingConfig = CONFIG) -> torch.optim.Optimizer:
    """An optimizer with moments."""
    optimizer, generator = build_optimizer(model, config), torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.empty_like(weight).normal_(generator=generator)
    optimizer.step()
    return optimizer


def state(steps: int) -> TrainState:
    return TrainState(done=Done(steps=steps, tokens=7, seconds=0.5), best_step=2, last_nats=1.5, metrics_bytes=9)


@pytest.fixture
def saved(tiny, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, tiny, worked(tiny), state(3), RECORD)


def rewrite(path: Path, change) -> None:
    """A checkpoint with other tensors, sealed anew."""
    tensors, other = load_file(path / "state.safetensors"), (path / "state.json").read_bytes()
    change(tensors)
    with staged_folder(path, RECORD) as folder:
        save_file(tensors, folder / "state.safetensors")
        (folder / "state.json").write_bytes(other)


def test_everything_comes_back_to_the_bit(tiny, build_llama, saved: Path) -> None:
    torch.manual_seed(5)
    optimizer, other = worked(tiny, 1), build_llama(seed=9)
    path = save_checkpoint(saved.parent, tiny, optimizer, state(12), RECORD)
    expected_random = torch.rand(3)
    restored = build_optimizer(other, CONFIG)
    torch.manual_seed(6)
    assert load_checkpoint(path, other, restored) == state(12)
    assert torch.equal(torch.rand(3), expected_random)
    for name, weight in trainable(tiny).items():
        twin = trainable(other)[name]
        assert torch.equal(weight, twin), name
        for key, moment in optimizer.state[weight].items():
            assert torch.equal(moment, restored.state[twin][key]), (name, key)


def test_the_momentum_of_muon_comes_back_and_is_not_taken_for_adamws(tiny, build_llama, tmp_path: Path) -> None:
    config, other = replace(CONFIG, optimizer="muon"), build_llama(seed=9)
    optimizer = worked(tiny, 1, config)
    path, restored = save_checkpoint(tmp_path, tiny, optimizer, state(12), RECORD), build_optimizer(other, config)
    load_checkpoint(path, other, restored)
    for model, each in ((tiny, optimizer), (other, restored)):
        generator = torch.Generator().manual_seed(3)
        for weight in trainable(model).values():
            weight.grad = torch.randn(weight.shape, generator=generator)
        each.step()
    for name, weight in trainable(tiny).items():
        assert torch.equal(weight, trainable(other)[name]), name
    with pytest.raises(CheckpointMismatch, match=r"missing from the checkpoint|unknown to this model"):
        load_checkpoint(path, other, build_optimizer(other, CONFIG))


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", MANIFEST])
def test_any_change_is_refused_and_the_one_before_taken(tiny, saved: Path, name: str) -> None:
    later = save_checkpoint(saved.parent, tiny, worked(tiny), state(20), RECORD)
    assert latest_checkpoint(saved.parent) == later
    data = bytearray((later / name).read_bytes())
    data[len(data) // 2] ^= 1
    (later / name).write_bytes(data)
    with pytest.raises((CheckpointMismatch, FormatError)):
        load_checkpoint(later, tiny, worked(tiny))
    assert latest_checkpoint(saved.parent) == saved


def test_a_missing_manifest_and_foreign_folders_are_passed_over(saved: Path) -> None:
    for name in ("step_000009", "step_000010.tmp-5", "steps"):
        (saved.parent / name).mkdir()
    assert latest_checkpoint(saved.parent) == saved


def test_nothing_saved_is_none_but_nothing_left_whole_is_an_error(saved: Path, tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nothing") is None
    (saved / MANIFEST).unlink()
    with pytest.raises(CheckpointMismatch, match="every checkpoint is damaged"):
        latest_checkpoint(saved.parent)


def damage(name: str, value: torch.Tensor | None):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("weight.norm.weight", None, "missing from the checkpoint"),
        ("exp_avg_sq.norm.weight", None, "missing from the checkpoint"),
        ("weight.extra", torch.zeros(2), "unknown to this model"),
        ("weight.norm.weight", torch.zeros(63), r"expected float32 \(64,\), got float32 \(63,\)"),
        ("exp_avg.norm.weight", torch.zeros(64, dtype=torch.float16), "got float16"),
        ("random.cpu", torch.zeros(2, dtype=torch.uint8), r"got uint8 \(2,\)"),
    ],
)
def test_a_wrong_tensor_is_named_and_nothing_is_loaded(tiny, saved: Path, name: str, value: Any, said: str) -> None:
    rewrite(saved, damage(name, value))
    before = copy.deepcopy(tiny.state_dict())
    with pytest.raises(CheckpointMismatch, match=f"{name}.*{said}"):
        load_checkpoint(saved, tiny, build_optimizer(tiny, CONFIG))
    assert all(torch.equal(tensor, before[key]) for key, tensor in tiny.state_dict().items())


def test_what_its_record_refuses_is_not_loaded(tiny, build_llama, saved: Path) -> None:
    records, other = [], build_llama(seed=9)
    before = copy.deepcopy(other.state_dict())

    def refuse(record: Any) -> None:
        records.append(record)
        raise CheckpointMismatch("another one", "")

    with pytest.raises(CheckpointMismatch, match="another one"):
        load_checkpoint(saved, other, build_optimizer(other, CONFIG), refuse)
    assert records[0].items() >= {**RECORD, **machine_record()}.items()
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())


def test_pruning_keeps_the_last_two_and_the_best(tiny, tmp_path: Path) -> None:
    optimizer = worked(tiny)
    for steps in (2, 4, 6, 1_000_000, 8):
        save_checkpoint(tmp_path, tiny, optimizer, state(steps), RECORD)
    prune_checkpoints(tmp_path, keep=2, best_step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000008", "step_1000000"]
    prune_checkpoints(tmp_path, keep=2, best_step=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000008", "step_1000000"]


def test_a_full_disk_leaves_earlier_steps_and_no_stray_file(tiny, saved: Path, monkeypatch) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DiskFull, match="No space left"):
        save_checkpoint(saved.parent, tiny, worked(tiny), replace(state(3), done=Done(steps=4)), RECORD)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert latest_checkpoint(saved.parent) == saved
