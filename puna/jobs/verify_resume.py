"""Proof on the user's own setting that a killed run goes on to the bit: the recipe's first steps, twice.

    once through:  1 2 3 4 5 6
    interrupted:   1 2 3 (saved) 4 5 (SIGKILL)  ->  in a new process:  4 5 6

Model, data, precision, optimizer, schedule and threads are the recipe's. Compared are every step's loss, gradient norm and
learning rate, and the SHA-256 of the weights, moments and random state after the last step.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from puna.errors import Interrupted, PunaError, UsageError
from puna.files import sha256_file, write_text
from puna.jobs.fitting import ensure_fits
from puna.jobs.machine import choose_device, use_threads
from puna.jobs.recipe import dump_recipe, fill, read_recipe
from puna.jobs.run_folder import RunFolder
from puna.jobs.train import dry_run, planned_settings, train
from puna.jobs.train_recipe import TrainRecipe
from puna.training.events import StepEvent

__all__ = ["ResumeProof", "verify_resume"]

_STEPS, _FEWEST = 6, 3
_COMPARED = ("step", "tokens", "nats", "gradient_norm", "learning_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeProof:
    """What `puna train --verify-resume` found.

    losses_equal, state_equal: to the last bit. sha256: of the state after the last step, once through.
    """

    steps: int
    saved_after: int
    killed_after: int
    threads: int
    losses_equal: bool
    state_equal: bool
    sha256: str

    @property
    def is_proven(self) -> bool:
        """Whether nothing differed."""
        return self.losses_equal and self.state_equal


def verify_resume(
    recipe: TrainRecipe,
    out: Path,
    *,
    anyway: bool = False,
    device: str = "auto",
    tell: Callable[[str], None] = lambda _: None,
) -> ResumeProof:
    """Train the recipe's first steps once through and once killed and resumed, and compare.

    Args:   out: where the run itself would go; it is left alone, the trials lie beside it while they last.
            anyway: even where the plan is larger than the memory.
            tell: is given a line before each trial.
    Errors: those of `train`; UsageError for a budget in seconds, whose schedule follows the clock, or of too few steps.
    """
    steps = min(_STEPS, _budget_steps(recipe))
    ensure_fits(recipe.model, planned_settings(recipe.training), choose_device(device), anyway=anyway)
    dry_run(recipe, device)  # what is wrong with the recipe or its data is said here
    beside = out.absolute().parent
    with tempfile.TemporaryDirectory(prefix=".verify-resume-", dir=beside if beside.is_dir() else None) as folder:
        once, broken = Path(folder) / "once", Path(folder) / "broken"
        tell(f"{steps} steps once through")
        _run(recipe, once, steps, signal.SIGTERM, device)
        tell(f"again, saved after {steps // 2}, killed after {steps - 1}")
        _run(recipe, broken, steps - 1, signal.SIGKILL, device, save_at=steps // 2)
        tell("resumed in a new process")
        _run(recipe, broken, steps, signal.SIGTERM, device, save_at=steps // 2)
        hashes = [sha256_file(_state(path, steps)) for path in (once, broken)]
        return ResumeProof(
            steps=steps,
            saved_after=steps // 2,
            killed_after=steps - 1,
            threads=torch.get_num_threads(),
            losses_equal=_steps(once) == _steps(broken) and len(_steps(once)) == steps,
            state_equal=hashes[0] == hashes[1],
            sha256=hashes[0],
        )


def _budget_steps(recipe: TrainRecipe) -> int:
    step_tokens = recipe.training.batch * recipe.training.seq
    tokens = recipe.training.budget.in_tokens(step_tokens)
    if tokens is None:
        raise UsageError(
            f"--verify-resume: expected a budget in steps or tokens, got {recipe.training.budget.kind}",
            "the learning rate follows the clock then, and no two runs are alike",
        )
    found = math.ceil(tokens / step_tokens)
    if found < _FEWEST:
        raise UsageError(f"--verify-resume: expected a budget of {_FEWEST} steps or more, got {found}", "raise --steps")
    return found


def _run(
    recipe: TrainRecipe, out: Path, last: int, end: signal.Signals, device: str, save_at: int | None = None
) -> None:
    """Train to step `last` in a process of its own, which then sends itself a signal."""
    training = replace(recipe.training, checkpoint_every=last if save_at is None else save_at, validate_every=last + 1)
    path = out.with_name("recipe.toml")
    write_text(path, dump_recipe(replace(recipe, training=training)))
    words = [str(path), str(out), str(last), end.name, device, str(torch.get_num_threads())]
    found = subprocess.run([sys.executable, "-m", __name__, *words], capture_output=True, text=True, check=False)
    if found.returncode not in (-end, 128 + end):
        last_words = (found.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise PunaError(f"a trial run ended with {found.returncode}: {last_words}", "run it without --verify-resume")


def _state(run: Path, step: int) -> Path:
    return RunFolder(run).checkpoints / f"step_{step:06d}" / "state.safetensors"


def _steps(run: Path) -> list[list[Any]]:
    events = map(json.loads, RunFolder(run).metrics.read_text(encoding="utf-8").splitlines())
    return [[event[name] for name in _COMPARED] for event in events if event["event"] == "step"]


def _trial(path: str, out: str, last: str, end: str, device: str, threads: str) -> int:
    """What a trial's process does; returns its exit code."""

    def observe(event: object) -> None:
        if isinstance(event, StepEvent) and event.step == int(last):
            os.kill(os.getpid(), signal.Signals[end])

    use_threads(int(threads))
    try:
        train(
            fill(TrainRecipe, read_recipe(Path(path))), out, resume=True, anyway=True, device=device,
            observers=(observe,), tensorboard=False,
        )  # fmt: skip
    except Interrupted as error:
        return error.exit_code
    except PunaError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_trial(*sys.argv[1:]))
