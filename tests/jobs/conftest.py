"""A small text in two scripts, the demo as a process without a network, and a small world for the other jobs."""

import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from puna.files import MANIFEST, verify_folder
from puna.jobs import adapt_judge, doctor, tokens
from puna.jobs.recipe import read_recipe
from puna.jobs.train import train
from puna.jobs.train_recipe import DataSource, TrainRecipe, train_recipe
from tests.pictures import draw_few

CHINESE = "大漠孤煙直，長河落日圓。蕭關逢候騎，都護在燕然。\n床前明月光，疑是地上霜。举头望明月，低头思故乡。\n"
NO_NETWORK = """
import os, pathlib, socket

def refuse(*args, **named):
    pathlib.Path(os.environ["NETWORK_LOG"]).write_text(repr(args))
    raise OSError("no network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_few(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def short_answers() -> Iterator[None]:
    """Before and after an adaptation a prompt is answered by 6 tokens: their number is most of a small one's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapt_judge, "ANSWER_TOKENS", 6)
        yield


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 40 KB: beginnings of library modules, Chinese in both scripts, and a file that is no text."""
    folder = tmp_path_factory.mktemp("text") / "my texts 文"
    folder.mkdir()
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:24]:
        (folder / source.name).write_text(source.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    for number in range(12):
        (folder / f"詩 {number}.txt").write_text(f"{number}\n" + CHINESE * 2, encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    return folder


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds a (hasty) measurement of this machine."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(doctor, "_MIN_SECONDS", 0.0)
        doctor.doctor(refresh=True)
    return folder


@dataclass
class DemoProcess:
    """`puna demo` running as a process of its own."""

    process: subprocess.Popen[bytes]
    network_log: Path

    def wait_for(self, part: str) -> None:
        """Read stderr up to the line at which a part begins."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.decode().startswith(f"{part} ..."):
                return
        raise AssertionError(f"{part} never began")

    def interrupt(self, seconds: float) -> tuple[int, str]:
        """Send SIGINT after some time; return the exit code and what stderr said from then on."""
        time.sleep(seconds)
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate()
        return self.process.returncode, err.decode()

    def finish(self) -> tuple[dict[str, Any], str]:
        """The object on stdout, and stderr."""
        out, err = self.process.communicate()
        assert self.process.returncode == 0, err.decode()
        assert not self.network_log.exists(), self.network_log.read_text()
        return json.loads(out), err.decode()


@pytest.fixture(scope="session")
def start_demo(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DemoProcess]:
    """`start_demo("--text", folder, ...)`: with one thread, and sockets that refuse to connect."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")

    def start(*arguments: object) -> DemoProcess:
        changes = {"XDG_CACHE_HOME": measured, "PYTHONPATH": site, "NETWORK_LOG": site / "log", "OMP_NUM_THREADS": 1}
        process = subprocess.Popen(
            [sys.executable, "-m", "puna", "demo", "--threads", "1", "--json", *map(str, arguments)],
            env={**os.environ, **{name: str(value) for name, value in changes.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return DemoProcess(process, site / "log")

    return start


@pytest.fixture(scope="session")
def assert_whole() -> Callable[[Path], None]:
    """Every file under a run that is there loads."""

    def check(out: Path) -> None:
        staged = [
            path for path in out.rglob("*") if ".tmp-" in str(path.relative_to(out)) or path.suffix == ".puna-old"
        ]
        assert not staged
        for manifest in out.rglob(MANIFEST):
            verify_folder(manifest.parent)
        for recipe in out.rglob("recipe.toml"):
            read_recipe(recipe)
        for lines in (*out.rglob("metrics.jsonl"), *out.rglob("second/*.jsonl")):
            for line in lines.read_text(encoding="utf-8").splitlines():
                json.loads(line)
        for report in out.rglob("report.html"):
            assert report.read_text(encoding="utf-8").rstrip().endswith("</html>")

    return check


WORDS = (
    "llama",
    "puna",
    "grass",
    "stone",
    "river",
    "walks",
    "sees",
    "eats",
    "the",
    "a",
    "high",
    "slowly",
    "again",
    "wool",
)


def sentences(seed: int, count: int) -> str:
    """Lines of words in a seeded order."""
    order = random.Random(seed)
    return "\n".join(" ".join(order.choices(WORDS, k=9)) + "." for _ in range(count)) + "\n"


@pytest.fixture(scope="session")
def with_less_text() -> Callable[..., SimpleNamespace]:
    """Of a world the same model, with so many documents to learn from and so many lines that judge."""

    def make(world: SimpleNamespace, folder: Path, *, documents: int, lines: int) -> SimpleNamespace:
        (folder / "text").mkdir()
        for path in sorted(world.text.iterdir())[:documents]:
            (folder / "text" / path.name).write_text(path.read_text())
        (folder / "judge.txt").write_text("".join(world.judge.read_text().splitlines(keepends=True)[:lines]))
        return SimpleNamespace(**{**vars(world), "text": folder / "text", "judge": folder / "judge.txt"})

    return make


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """text/ (80 documents), tokenizer/, shards/ and run/: a tiny model with a tokenizer of its own, trained for 12 steps."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "text").mkdir()
    for number in range(80):
        (folder / "text" / f"{number:02d}.txt").write_text(sentences(number, 12))
    (folder / "judge.txt").write_text(sentences(1000, 400))
    learned = tokens.learn([folder / "text"], 320, folder / "tokenizer")
    built = tokens.build([folder / "text"], folder / "tokenizer", folder / "shards")
    paths = {name: folder / name for name in ("text", "tokenizer", "shards", "run")}
    world = SimpleNamespace(folder=folder, judge=folder / "judge.txt", learned=learned, built=built, **paths)
    world.trained = train(tiny_recipe(world, steps=12), world.run)
    return world


@pytest.fixture(scope="session")
def build_recipe(world: SimpleNamespace) -> Callable[..., TrainRecipe]:
    """`build_recipe(steps, **training)`: a recipe on the world's shards."""
    return lambda steps, **training: tiny_recipe(world, steps, **training)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where a test's runs go."""
    return tmp_path / "runs"


def tiny_recipe(world: SimpleNamespace, steps: int, **training: Any) -> TrainRecipe:
    """The tiny preset on the world's shards, a step small enough for tests."""
    table = {"seq": 32, "batch": 4, "micro_batch": 4, "precision": "float32", "validate_every": 4, **training}
    budget = {"kind": "steps", "steps": steps}
    return train_recipe(model="tiny", data=[DataSource(path=world.shards)], training={"budget": budget, **table})


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("records") / "pairs.jsonl"
    pairs = [{"prompt": f"who walks {number}? ", "completion": "the llama walks again."} for number in range(40)]
    path.write_text("\n".join(map(json.dumps, pairs)))
    return path
