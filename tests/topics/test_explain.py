"""Laws of every topic: it runs, by hand is as the engine, both languages say the same, and what it names exists."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from puna.cli.main import run
from puna.errors import UsageError
from puna.model.llama import Llama
from puna.topics.explain import explain, find_topic
from puna.topics.subject import small_tokenizer
from puna.topics.topic import Grid
from puna.topics.words import TOPICS, topic_words
from puna.weights.folder import save_folder

LARGE = "llama-3-8b"


def named(numbers: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    return {name: value for part in numbers.values() for name, value in part.items()}


@pytest.mark.parametrize("topic", TOPICS)
def test_by_hand_is_as_the_engine_computes_and_every_number_is_printed(
    topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", topic, "--model", "tiny", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"topic", "formula", "numbers", "correction"} <= told.keys()
    assert told["topic"] == topic
    numbers = named(told["numbers"])
    differences = {name: value for name, value in numbers.items() if name.endswith("_difference")}
    assert all(abs(float(str(value))) <= 1e-6 for value in differences.values()), differences
    assert run(["explain", topic, "--model", "tiny"]) == 0
    printed, words = capsys.readouterr().out, topic_words(topic, "en")
    assert [name for name in numbers if words.numbers[name] not in printed] == []
    assert all(told[part] in printed for part in ("right", "correction", "code", "test"))


@pytest.mark.parametrize("topic", TOPICS)
def test_every_number_symbol_part_and_picture_has_words_in_both_languages(topic: str, tmp_path: Path) -> None:
    english, chinese = (asdict(topic_words(topic, lang)) for lang in ("en", "zh"))
    shown = explain(topic, model="tiny", lang="zh", out=tmp_path)
    for kind in ("symbols", "numbers", "parts", "pictures"):
        assert english[kind].keys() == chinese[kind].keys(), kind
        assert all(english[kind].values()), kind
        assert all(chinese[kind].values()), kind
    assert named(shown.numbers).keys() <= english["numbers"].keys()
    assert {Path(path).stem for path in shown.pictures} == english["pictures"].keys()
    assert all(Path(path).read_text("utf-8").startswith("<?xml") for path in shown.pictures)
    assert shown.numbers.keys() <= english["parts"].keys() | {"model", "example"}


@pytest.mark.parametrize("topic", TOPICS)
def test_the_code_and_the_test_that_it_names_exist(root: Path, topic: str) -> None:
    found = find_topic(topic)
    assert found.name == topic
    for path, name in (found.code, found.test):
        assert f" {name}(" in (root / path).read_text("utf-8") or f" {name}:" in (root / path).read_text("utf-8"), name
    assert find_topic(topic).test[1].startswith("test_")


@pytest.mark.parametrize("topic", TOPICS)
def test_a_large_preset_gives_shapes_and_counts_alone(topic: str) -> None:
    shown = explain(topic, model=LARGE)
    assert LARGE in shown.notices[0]
    assert "shapes and counts only" in shown.notices[0]
    assert shown.formula
    assert shown.symbols


def test_the_same_again_is_the_same() -> None:
    assert explain("attention", model="tiny") == explain("attention", model="tiny")


def test_without_a_topic_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "--lang", "zh"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == list(TOPICS)


def test_an_unknown_topic_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown topic 'atention'") as caught:
        explain("atention")
    assert "did you mean 'attention'" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "--json"], "expected a topic"),
        (["explain", "rope", "--text", " "], "expected some words"),
        (["explain", "lora", "--rank", "0"], "expected at least 1"),
        (["explain", "rope", "--model", "nowhere"], "no such file"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_long_text_is_cut_and_that_is_said() -> None:
    shown = explain("embedding", model="tiny", text="a b c " * 50)
    assert len(shown.tokens) == 16
    assert any("the first 16 are shown" in notice for notice in shown.notices)


def test_without_a_model_the_newest_run_is_taken(tiny: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert explain("rope").subject.startswith("tiny, random weights")
    for seconds, name in ((2, "new"), (1, "old")):
        model = tmp_path / "runs" / name / "model"
        save_folder(tiny, model, tokenizer=small_tokenizer())
        os.utime(model, (seconds, seconds))
    shown = explain("rope")
    assert shown.subject == "runs/new/model"
    assert shown.tokens[1] == "The"


def test_a_grid_has_a_name_for_every_row_and_column() -> None:
    with pytest.raises(AssertionError):
        Grid(rows=["a"], columns=["b"], values=[[1.0, 2.0]])
