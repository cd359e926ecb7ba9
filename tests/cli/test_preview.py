"""`puna adapt --preview`: what is learned, marked in words in a pipe and in colour on a terminal; nothing is trained."""

import json
import os
import pty
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Puna = Callable[..., Any]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    line = {"ask": "Who \x1b[31mwalks?", "say": "Each step."}
    path.write_text("\n".join([json.dumps(line)] * 5), encoding="utf-8")
    return path


def test_words_in_a_pipe(puna: Puna, made: Any, questions: Path) -> None:
    run = ("adapt", made.trained, questions, "--fields", "ask,say", "--seq", 64)
    ending = puna(*run, "--preview")
    assert ending.code == 0, ending
    lines = ending.out.splitlines()
    assert [line.split("\t")[0] for line in lines[:3]] == [f"{questions}:1", "given", "learned"]
    assert lines[2].endswith('\t"Each step.<|end_of_text|>"')
    assert "\x1b" not in ending.out
    assert ending.out.count("learned\t") == 3
    assert "5 used, 0 dropped" in ending.out
    assert puna(*run, "--preview", 1).out.count("learned\t") == 1
    everything = puna(*run, "--preview", 1, "--loss", "all").out
    assert everything.splitlines()[1].startswith('given\t1\t"<|begin_of_text|>"')


def test_one_object_with_json_and_the_lint_decides_how_it_ends(puna: Puna, made: Any, questions: Path) -> None:
    questions.write_text(questions.read_text() + '\n{"ask": "Who?", "say": " "}')
    run = ("adapt", made.trained, questions, "--fields", "ask,say", "--seq", 64, "--preview", 2)
    ending = puna(*run, "--anyway", "--json")
    assert ending.json.keys() == {"records", "previewed"}
    assert ending.json["records"]["reasons"] == {"empty answer": 1}
    assert [record["kind"] for record in ending.json["previewed"]] == ["question"] * 2
    refused = puna(*run).failed(1, "1 of 6 records cannot be used: empty answer: 1", "hint: ")
    assert "dropped: empty answer" in refused.out
    as_json = puna(*run, "--json")
    assert as_json.code == 1
    assert as_json.json["error"]["type"] == "BadData"
    assert len(as_json.json["previewed"]) == 2


def test_what_is_wrong_with_the_words(puna: Puna, made: Any, questions: Path) -> None:
    puna("adapt", made.trained, questions).failed(2, "expected --out RUN")
    puna("adapt", made.trained, questions, "--preview", "--fields", "ask").failed(2, "two names")
    puna("adapt", made.trained, questions, "--preview", 0).failed(2, "at least 1 record")
    puna("adapt", made.trained, questions, "--preview", "--loss", "answers").failed(2, "--loss")
    puna("adapt", "--out", made.adapted, "--resume", "--preview").failed(2, "--preview")
    puna("adapt", "--out", made.adapted, "--resume", "--loss", "all").failed(2, "--loss")


def test_colours_on_a_terminal(puna: Puna, made: Any, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    far, near = pty.openpty()
    with os.fdopen(near, "w", encoding="utf-8", buffering=1) as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        puna("adapt", made.trained, questions, "--fields", "ask,say", "--seq", 64, "--preview", 1)
        drawn = b""
        while select.select([far], [], [], 0.5)[0]:
            drawn += os.read(far, 1 << 16)
    os.close(far)
    assert b"\x1b[1;32mEach step.<|end_of_text|>" in drawn
    assert b"Who \\x1b[31mwalks?" in drawn
