"""SIGINT at any moment of the demo: exit code 130, every file present loads, and the next run ends with its report."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PARTS = {
    "tokenizer": 0.1,
    "train": 8.0,
    "evaluate": 0.2,
    "adapt": 3.0,
    "compress": 0.8,
    "generate": 0.3,
    "report": 0.05,
}
PUSHED, NIGHTLY_COUNT = 1, 10  # which moment belongs to a change, and how many there are
IS_NIGHTLY = os.environ.get("PUNA_COUNTS") == "nightly"  # then on the default text; else a short job


def moments() -> list[Any]:
    """A part, and how long after its beginning the signal comes; the first comes while modules are imported."""
    generator = random.Random(20)
    chosen = [(None, generator.uniform(0.2, 1.5))]
    while len(chosen) < NIGHTLY_COUNT:
        part = generator.choice(sorted(set(PARTS) - {name for name, _ in chosen[1:][-6:]}))
        chosen.append((part, generator.uniform(0, PARTS[part])))
    marks = [() if number == PUSHED else pytest.mark.nightly for number in range(NIGHTLY_COUNT)]
    return [
        pytest.param(part, seconds, marks=mark, id=f"{part or 'imports'}+{seconds:.2f}s")
        for (part, seconds), mark in zip(chosen, marks, strict=True)
    ]


@pytest.mark.parametrize(("part", "seconds"), moments())
def test_stopped_at_any_moment_nothing_is_broken_and_the_next_run_finishes(
    part: str | None,
    seconds: float,
    tmp_path: Path,
    small_text: Path,
    start_demo: Callable[..., Any],
    assert_whole: Callable[[Path], None],
) -> None:
    text = ("--seconds", 5) if IS_NIGHTLY else ("--text", small_text, "--seconds", 2)
    words = (*text, "--out", tmp_path / "demo")
    demo = start_demo(*words)
    if part is not None:
        demo.wait_for(part)
    code, err = demo.interrupt(seconds)
    assert code == 130, err
    assert "Traceback" not in err
    if (tmp_path / "demo").exists():
        assert_whole(tmp_path / "demo")
    result, _ = start_demo(*words).finish()
    assert Path(result["report"]).is_file()
    assert_whole(tmp_path / "demo")
