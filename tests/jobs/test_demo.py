"""The main job on a small text: its result, going on after a stop, and starting anew."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from puna.errors import BadData, Interrupted, UsageError
from puna.generation.decode import generate
from puna.generation.sampling import Sampler, SamplingSettings
from puna.jobs import demo as job
from puna.jobs.demo import DemoRecipe, demo
from puna.jobs.demo_result import DemoResult, demo_rows
from puna.jobs.load import load
from puna.tokens.learning import learn_tokenizer
from puna.tokens.shards import open_shards

PARTS = ("gather", "tokenizer", "shards", "train", "evaluate", "adapt", "compress", "generate", "report")
Whole = Callable[[Path], None]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, measured: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(measured))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, start_demo: Any, small_text: Path) -> tuple[Path, Any, str]:
    """A finished demo: its folder, the object on stdout, and stderr."""
    out = tmp_path_factory.mktemp("finished") / "my demo 大漠"
    result, err = start_demo("--text", small_text, "--seconds", 0.5, "--out", out, "--lang", "zh").finish()
    return out, result, err


def steps_of(out: Path) -> list[int]:
    lines = (out / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["event"] == "step"]


def run(small_text: Path, out: Path, seconds: float = 0.2, **named: Any) -> DemoResult:
    return demo(DemoRecipe(text=small_text, seconds=seconds), out, **named)


def stop_at(part: str) -> Callable[[str], None]:
    def tell(line: str) -> None:
        if line == f"{part} ...":
            raise KeyboardInterrupt

    return tell


def test_it_prints_what_it_promises(finished: Any, assert_whole: Whole) -> None:
    out, result, err = finished
    assert result.keys() >= {"report", "model", "seconds", "steps", "train", "adapt", "compress", "generate"}
    assert tuple(step["name"] for step in result["steps"]) == PARTS
    trained = {"tokens", "tokens_per_second", "loss_first", "loss_last", "validation_nats", "bits_per_byte"}
    assert result["train"].keys() >= trained | {"token_unigram_bits_per_byte", "byte_unigram_bits_per_byte"}
    assert result["adapt"].keys() >= {"new_before", "new_after", "old_before", "old_after"}
    kinds = [(each["method"], each["keep"]) for each in result["compress"]]
    assert kinds == [*((method, keep) for method in ("svd", "whitened") for keep in (0.9, 0.8, 0.6)), ("int8", None)]
    assert all(each.keys() >= {"bytes", "added_nats"} for each in result["compress"])
    assert result["generate"]["text"]
    assert Path(result["report"]) == out / "report.html"
    assert Path(result["report"]).is_file()
    assert load(result["model"]).config.n_kv_heads < load(result["model"]).config.n_heads
    assert "1 files are no text and left out" in err
    assert "picture.png" in err
    assert_whole(out)


def test_no_character_is_broken(finished: Any) -> None:
    out, result, _ = finished
    tokenizer = load(result["model"]).tokenizer
    for part in ("train", "held_out"):
        text = tokenizer.decode(open_shards(out / "shards" / part).tokens.tolist())
        assert "\ufffd" not in text
    assert "長河落日圓" in tokenizer.decode(open_shards(out / "shards" / "train").tokens.tolist())
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert '<html lang="zh' in page
    without_model_text = re.sub(r"<blockquote.*?</blockquote>", "", page, flags=re.DOTALL)
    assert "\ufffd" not in without_model_text


def test_a_prompt_ends_with_a_whole_character() -> None:
    tokenizer = learn_tokenizer(["abc"], 261)  # bytes alone: twelve of them end inside a character
    for skipped in range(4):
        text = "x" * skipped + "大漠孤煙𠀀直"
        prompt = job._beginning(tokenizer, text)
        assert prompt
        assert text.startswith(prompt)


def test_stopped_before_any_part_it_goes_on(small_text: Path, tmp_path: Path, assert_whole: Whole) -> None:
    out = tmp_path / "demo"
    for part in PARTS:
        with pytest.raises(KeyboardInterrupt):
            run(small_text, out, tell=stop_at(part))
        assert_whole(out)
        assert not (out / "report.html").exists()
    for place in ("model.tmp-1", "shards/train.tmp-1", "second/train.jsonl.tmp-1", "train/model.tmp-1"):
        (out / place).mkdir()  # as a killed process leaves them
    trained = steps_of(out)
    result = run(small_text, out)
    assert result.train.tokens == trained[-1] * 4 * 256
    assert {"bits per byte, held out", "LoRA, new text", "svd 80%, added nats", "time"} <= dict(
        demo_rows(result)
    ).keys()
    assert steps_of(out) == trained
    assert_whole(out)


def test_stopped_in_the_middle_of_training_it_goes_on_from_there(
    small_text: Path, tmp_path: Path, assert_whole: Whole
) -> None:
    out = tmp_path / "demo"
    seen: list[int] = []

    def observe(event: Any) -> None:
        seen.append(event.step)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="saved step 2"):
        run(small_text, out, seconds=1.5, observers=(observe,))
    assert_whole(out)
    assert seen == [1, 2]
    run(small_text, out, seconds=1.5, observers=(observe,))
    assert seen[2] == 3
    steps = steps_of(out)
    assert steps == list(range(1, len(steps) + 1))


def test_a_finished_one_is_made_anew_and_a_wrong_text_loses_nothing(
    small_text: Path, tmp_path: Path, finished: Any
) -> None:
    out = tmp_path / "demo"
    shutil.copytree(finished[0], out)
    before = (out / "report.html").read_bytes()
    with pytest.raises(BadData, match="nothing"):
        demo(DemoRecipe(text=tmp_path / "typo"), out)
    assert (out / "report.html").read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        demo(DemoRecipe(text=small_text, seconds=0.5, lang="zh"), out, tell=stop_at("tokenizer"))
    assert sorted(path.name for path in out.iterdir()) == [".lock", "recipe.toml"]


def test_what_it_did_not_make_stays(small_text: Path, tmp_path: Path, finished: Any) -> None:
    out = tmp_path / "demo"
    shutil.copytree(finished[0], out)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        run(small_text, out, tell=stop_at("tokenizer"))
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("settings", [{"seconds": 0.0}, {"seconds": float("nan")}, {"seed": -1}])
def test_settings_that_make_no_sense_are_refused(settings: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        DemoRecipe(**settings)


@pytest.mark.nightly
def test_real_plays_and_poems_reach_their_report(
    shared_data: Path, tmp_path: Path, start_demo: Any, assert_whole: Whole
) -> None:
    out = tmp_path / "demo"
    result, _ = start_demo("--text", shared_data / "texts", "--seconds", 10, "--out", out).finish()
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert "\ufffd" not in re.sub(r"<blockquote.*?</blockquote>", "", page, flags=re.DOTALL)
    tokens = open_shards(out / "shards" / "train").tokens.tolist()
    assert "\ufffd" not in load(result["model"]).tokenizer.decode(tokens)
    assert_whole(out)


def test_a_folder_of_the_users_own_is_refused_and_left_alone(small_text: Path, tmp_path: Path) -> None:
    names = ("letter.txt", "letter.txt.old", "a.tmp-1")
    for name in names:
        (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="holds no run"):
        run(small_text, tmp_path)
    assert set(names) <= {path.name for path in tmp_path.iterdir()}


def test_another_text_begins_anew(small_text: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "demo", tmp_path / "text"
    shutil.copytree(small_text, text)
    with pytest.raises(KeyboardInterrupt):
        run(text, out, tell=stop_at("evaluate"))
    first = open_shards(out / "shards" / "train").sha256
    (text / "more.txt").write_text("one document more\n" * 40, encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        run(text, out, tell=stop_at("train"))
    assert not (out / "train").exists()
    assert open_shards(out / "shards" / "train").sha256 != first


def test_transformers_says_what_the_demos_model_says(finished: Any) -> None:
    folder = finished[0] / "train" / "model"
    ours, theirs = load(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.from_numpy(open_shards(finished[0] / "shards" / "held_out").window(0, 60))[None]
    logits = theirs(ids).logits
    assert (ours(ids) - logits).abs().max() <= 1e-5 * logits.abs().max()
    greedy = theirs.generate(ids[:, :20], max_new_tokens=32, do_sample=False, pad_token_id=0)[0, 20:].tolist()
    sampler = Sampler(SamplingSettings(temperature=0.0))
    assert list(generate(ours.llama, ours.tokenizer, ids[0, :20].tolist(), sampler, max_new_tokens=32).ids) == greedy
