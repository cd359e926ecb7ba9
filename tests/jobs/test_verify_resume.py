"""The proof holds for a real recipe, and fails where the resumed run differs."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from puna.errors import PunaError, UsageError
from puna.jobs import verify_resume as job
from puna.jobs.train import train
from puna.jobs.verify_resume import verify_resume
from puna.training.config import StepBudget, TimeBudget


def test_a_killed_run_goes_on_to_the_bit_and_out_is_left_alone(build_recipe, runs: Path) -> None:
    recipe = build_recipe(100)
    runs.mkdir()
    found = verify_resume(replace(recipe, training=replace(recipe.training, micro_batch=2)), runs / "a")
    assert found.is_proven
    assert (found.steps, found.saved_after, found.killed_after, len(found.sha256)) == (6, 3, 5, 64)
    assert not list(runs.iterdir())


def test_a_difference_is_not_proven(build_recipe, runs: Path, monkeypatch) -> None:
    def here(recipe, out, last, end, device, save_at=None) -> None:
        training = replace(recipe.training, seed=1 if out.name == "broken" else 0, checkpoint_every=last)
        if end == signal.SIGTERM:
            train(replace(recipe, training=training), out, device=device)

    monkeypatch.setattr(job, "_run", here)
    found = verify_resume(build_recipe(3), runs / "a")
    assert [found.losses_equal, found.state_equal, found.is_proven] == [False, False, False]


def test_what_cannot_be_proven_is_refused(build_recipe, runs: Path, monkeypatch) -> None:
    recipe = build_recipe(9)
    for budget, said in ((TimeBudget(seconds=9), "steps or tokens"), (StepBudget(steps=2), "3 steps or more")):
        with pytest.raises(UsageError, match=said):
            verify_resume(replace(recipe, training=replace(recipe.training, budget=budget)), runs / "a")
    monkeypatch.setattr(job, "dry_run", lambda *_: None)
    with pytest.raises(PunaError, match=r"ended with 1: .*prose"):
        verify_resume(replace(recipe, data=(replace(recipe.data[0], path=runs / "prose"),)), runs / "a")
