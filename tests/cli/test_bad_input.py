"""Whatever is wrong with what comes in: an error that names it, a hint, the right exit code, and nothing lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Puna = Callable[..., Any]
SMALL = ("--precision", "float32", "--threads", 1, "--batch", 2, "--seq", 32)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its lock, whose content is the last process."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("verb", ["tokens train", "tokens build", "adapt", "compress", "evaluate"])
def test_no_readable_text(verb: str, puna: Puna, made: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "noise.bin").write_bytes(b"\0\1\2")
    out = tmp_path / "out"
    words = {
        "tokens train": ("tokens", "train", empty, "--vocab-size", 300, "--out", out),
        "tokens build": ("tokens", "build", empty, "--tokenizer", made.tokenizer, "--out", out),
        "adapt": ("adapt", made.trained, empty, "--out", out, "--precision", "float32"),
        "compress": ("compress", made.trained, out, "--calibration", empty),
        "evaluate": ("evaluate", made.trained, "--text", empty),
    }[verb]
    puna(*words).failed(1, "no readable text", "1 files skipped", "hint: ")


def test_text_that_is_not_there(puna: Puna, made: Any, tmp_path: Path) -> None:
    puna("evaluate", made.trained, "--text", tmp_path / "nothing").failed(1, "nothing", "hint: ")


def test_a_text_to_embed_that_is_empty_or_a_file_that_is_not_there(puna: Puna, made: Any, tmp_path: Path) -> None:
    puna("embed", made.trained, "--text", tmp_path / "nothing.txt").failed(2, "no such file", "hint: ")
    puna("embed", made.trained, "--text", tmp_path).failed(1, "expected a file, got a folder", "hint: ")
    puna("embed", made.trained, "--text", "a", "").failed(1, "got an empty one, text 2 of 2", "hint: ")
    puna("embed", made.trained, "--text").failed(2, "at least one text", "hint: ")
    puna("embed", made.trained, "--text", "a", "--judge").failed(1, "at least 10 pairs", "hint: ")
    puna("embed", made.trained, "--text", "a" * 5000, "--pool", "max").failed(2, "pool", "hint: ")
    assert puna("embed", made.trained, "--text", "a" * 5000).code == 0  # longer than any path


def test_a_text_too_small_to_split(puna: Puna, made: Any, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "only.txt").write_text("A llama.", encoding="utf-8")
    puna("demo", "--text", text, "--out", tmp_path / "demo").failed(1, "too little text to split", "hint: add text")
    assert puna("tokens", "build", text, "--tokenizer", made.tokenizer, "--out", tmp_path / "shards").code == 0
    run = ("train", "--model", "tiny", "--data", tmp_path / "shards", "--out", tmp_path / "run", "--steps", 1)
    puna(*run, *SMALL).failed(1, "documents", "hint: ")
    puna("adapt", made.trained, text, "--out", tmp_path / "a", "--steps", 1, *SMALL).failed(1, "too few", "hint: ")


def test_a_vocabulary_larger_than_the_data_supports(puna: Puna, made: Any, tmp_path: Path) -> None:
    ending = puna("tokens", "train", made.text, "--vocab-size", "20K", "--out", tmp_path / "t")
    ending.failed(1, "support at most", "got 20000", "hint: ask for")
    assert not (tmp_path / "t").exists()


def test_a_vocabulary_without_room_for_bytes(puna: Puna, made: Any, tmp_path: Path) -> None:
    puna("tokens", "train", made.text, "--vocab-size", 100, "--out", tmp_path / "t").failed(2, "at least 261", "hint: ")


def test_an_unknown_key_in_a_setting_or_a_recipe(puna: Puna, made: Any, tmp_path: Path) -> None:
    run = ("train", "--model", "tiny", "--data", made.shards, "--out", tmp_path / "run", *SMALL)
    puna(*run, "--set", "training.learning_rat=1").failed(2, "learning_rat", "did you mean 'training.learning_rate'?")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("schema = 1\n[training]\nsede = 1\n", encoding="utf-8")
    puna(*run, "--recipe", recipe).failed(2, "sede", "seed")
    assert not (tmp_path / "run").exists()


def test_an_unknown_preset(puna: Puna, made: Any, tmp_path: Path) -> None:
    puna("plan", "smal").failed(2, "did you mean 'small'?")


@pytest.mark.parametrize("verb", ["generate", "evaluate", "adapt", "compress"])
def test_an_untrained_preset_where_weights_are_needed(verb: str, puna: Puna, made: Any, tmp_path: Path) -> None:
    words = {
        "generate": ("generate", "small", "--prompt", "x"),
        "evaluate": ("evaluate", "small", "--text", made.text),
        "adapt": ("adapt", "small", made.text, "--out", tmp_path / "out", "--precision", "float32"),
        "compress": ("compress", "small", tmp_path / "out", "--calibration", made.text),
    }[verb]
    ending = puna(*words).failed(2, "'small' is a preset", "no weights", "hint: train a model first")
    assert ending.out == ""


def test_a_name_on_a_hub_is_answered_with_how_to_fetch_it(puna: Puna) -> None:
    puna("generate", "meta-llama/Llama-3.2-1B", "--prompt", "x").failed(2, "hf download meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize("verb", ["generate", "evaluate", "weights"])
def test_a_model_folder_without_config(verb: str, puna: Puna, made: Any, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(made.trained / "model", broken)
    (broken / "config.json").unlink()
    words = {
        "generate": ("generate", broken, "--prompt", "x"),
        "evaluate": ("evaluate", broken, "--text", made.text),
        "weights": ("weights", "show", broken),
    }[verb]
    puna(*words).failed(1, "config.json")


def test_a_prompt_longer_than_the_context(puna: Puna, made: Any) -> None:
    puna("generate", made.trained, "--prompt", "llama " * 500, "--threads", 1).failed(2, "context", "256", "hint: ")


def test_a_loss_that_is_no_number(puna: Puna, made: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = ("train", "--model", "tiny", "--data", made.shards, "--out", out, "--steps", 8, "--checkpoint-every", 1)
    ending = puna(*run, *SMALL, "--learning-rate", "1e30", "--set", "training.warmup=0.0")
    ending.failed(1, "hint: ", "learning")
    puna(*run[:-2], "--learning-rate", "nan", *SMALL).failed(2)
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)


def test_a_full_disk_while_saving_loses_nothing(
    puna: Puna, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("train", "--model", "tiny", "--data", made.shards, "--out", tmp_path / "run", *SMALL)
    merge = ("adapt", "merge", made.adapted, "--out", tmp_path / "merged")
    assert puna(*run, "--steps", 2).code == 0
    assert puna(*merge).code == 0
    before = files_of(tmp_path / "merged")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        puna(*merge).failed(1, "No space left", "bytes are free", "hint: free some space", "untouched")
        puna(*run[:6], tmp_path / "second", *run[7:], "--steps", 2).failed(1, "No space left", "hint: ")
        puna("tokens", "train", made.text, "--vocab-size", 300, "--out", tmp_path / "t").failed(1, "No space left")
    assert files_of(tmp_path / "merged") == before
    assert not list(tmp_path.rglob("*.tmp-*"))
    assert puna("generate", tmp_path / "run", "--prompt", "a", "--max-new-tokens", 1).code == 0


def test_a_file_size_limit_is_met_with_the_same_words(made: Any, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from puna.cli.main import main; main()"
    )
    words = ("tokens", "build", made.text, "--tokenizer", made.tokenizer, "--out", tmp_path / "shards", "--json")
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert json.loads(done.stdout)["error"]["type"] == "DiskFull"
    assert "hint: free some space" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_place_that_holds_something_else_is_left_alone(puna: Puna, made: Any, tmp_path: Path) -> None:
    own = tmp_path / "project"
    (own / "train").mkdir(parents=True)
    (own / "train" / "thesis.txt").write_text("years of work", encoding="utf-8")
    puna("demo", "--text", made.text, "--out", own).failed(2, "train", "hint: choose another --out")
    puna("demo", "--text", made.text, "--out", made.trained).failed(2, "no demo", "hint: choose another --out")
    puna("demo", "--text", made.text, "--out", own / "train" / "thesis.txt").failed(2, "not a folder")
    assert (own / "train" / "thesis.txt").read_text(encoding="utf-8") == "years of work"
    assert (made.trained / "model" / "config.json").exists()
