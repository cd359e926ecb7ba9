"""Running `puna` inside the test process and as a child, and one small trained run to try the verbs on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from puna.cli.main import run
from tests.pictures import draw_few

LINES = [
    "The llama walks over the high grassland.",
    "def carry(load): return [step for step in load if step is not None]",
    "Each step is no longer than the last, and every word follows another.",
    "import os, sys; print(os.sep.join(sys.argv))",
    "Wool, salt and maize are carried from the valley to the puna and back.",
]


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout as exactly one JSON object."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        assert self.out.count("\n") == 1
        return value

    def failed(self, code: int, *words: str) -> "Ending":
        """Assert a failure that says these words, in the form that every failure has."""
        assert self.code == code, self
        assert self.err.count("error: ") == 1
        assert "Traceback" not in self.out + self.err
        for word in words:
            assert word in self.err, self.err
        return self


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_few(monkeypatch)


@pytest.fixture
def puna(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ending]:
    """`puna("plan", "tiny")` in this process."""

    def call(*arguments: object) -> Ending:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Ending(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def puna_child() -> Callable[..., Ending]:
    """`puna_child("plan", "tiny", LC_ALL="C")`: the same as a process of its own, with changes to its environment."""

    def call(*arguments: object, **environment: str) -> Ending:
        done = subprocess.run(
            [sys.executable, "-m", "puna", *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            check=False,
        )
        return Ending(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


@dataclass(frozen=True)
class Made:
    """A text and what was made from it."""

    text: Path
    tokenizer: Path
    shards: Path
    trained: Path
    adapted: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Text, tokenizer, shards, a tiny run and an adapter, all made by the verbs."""
    root = tmp_path_factory.mktemp("made")
    text = root / "text"
    text.mkdir()
    for number in range(40):
        lines = [f"{number}: {LINES[(number + i) % len(LINES)]} {number * i}" for i in range(24)]
        (text / f"{number:02}.txt").write_text("\n".join(lines), encoding="utf-8")
    folders = Made(text, root / "tokenizer", root / "shards", root / "trained", root / "adapted")
    small = ("--precision", "float32", "--threads", 1, "--steps", 2, "--batch", 2, "--seq", 32)
    for command in (
        ("tokens", "train", text, "--vocab-size", 300, "--out", folders.tokenizer),
        ("tokens", "build", text, "--tokenizer", folders.tokenizer, "--out", folders.shards),
        ("train", "--model", "tiny", "--data", folders.shards, "--out", folders.trained, *small),
        ("adapt", folders.trained, text, "--out", folders.adapted, "--rank", 2, *small),
    ):
        assert run([str(word) for word in command]) == 0, command
    return folders
