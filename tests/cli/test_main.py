"""Every ending becomes an exit code and a line that says what to do; signals are answered from the first import on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from puna.cli import main, verbs
from puna.errors import DiskFull, Interrupted
from puna.jobs.verify_resume import ResumeProof

Puna = Callable[..., Any]

# Sends a signal to itself at the moment at which `module` is about to be imported.
SIGNAL_AT_IMPORT = """
import os, signal, sys
from puna.cli.main import main

module, signum = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]

class Sender:
    def find_spec(self, name, *_):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signum)

sys.meta_path.insert(0, Sender())
main()
"""


def ending_of(monkeypatch: pytest.MonkeyPatch, act: Callable[[], int | None]) -> Callable[..., int]:
    """`run` with a verb that does `act`."""

    def app(tokens: Sequence[str], **_: object) -> int | None:
        return act()

    monkeypatch.setattr(verbs, "app", app)
    return main.run


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("trian",), "train"),
        (("tokens", "enocde"), "encode"),
        (("plan", "llama-3-8"), "llama-3-8b"),
        (("plan", "tiny", "--bas", "nf4"), "--base"),
        (("plan", "tiny", "--base", "nf5"), "nf4"),
        (("generate", "m", "--base", "nf5"), "nf4"),
        (("plan", "tiny", "--targets", "q_prj"), "q_proj"),
        (("demo", "--secnds", "3"), "--seconds"),
        (("demo", "--lang", "ze"), "zh"),
    ],
    ids=" ".join,
)
def test_an_unknown_name_is_answered_with_the_nearest(words: tuple[str, ...], offered: str, puna: Puna) -> None:
    ending = puna(*words).failed(2, offered)
    assert ending.out == ""
    assert "hint: " in ending.err


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("adapt m d --out o --method dpo", "--method"),
        ("adapt m d --out o --base nf5", "--base"),
        ("generate m --prompt p --chat", "--chat"),
        ("compress m o --frontier", "--calibration"),
        ("compress m o --frontier --calibration c --keep 0.5", "--keep 0.5"),
        ("compress m o --frontier --calibration c --quantize int8", "--quantize int8"),
        ("compress m o --frontier --calibration c --allocation greedy", "--allocation greedy"),
        ("compress m o --frontier --calibration c --embedding-rank 4", "--embedding-rank 4"),
        ("compress m o --frontier --calibration c --kv-heads 2", "--kv-heads 2"),
        ("plan tiny --lang zh", "--lang"),
        ("weights convert a b", "--to"),
        ("explain rope --lang fr", "--lang"),
        ("embed m --text a --pool max", "--pool"),
        ("serve", "serve"),
        ("lab study", "study"),
    ],
)
def test_what_is_not_built_is_refused_by_name(words: str, refused: str, puna: Puna) -> None:
    puna(*words.split()).failed(2, refused)


@pytest.mark.parametrize("words", ["plan", "tokens train --vocab-size 300 --out o", "adapt --out o", "train", "demo x"])
def test_a_missing_or_needless_word_is_a_usage_error(words: str, puna: Puna) -> None:
    puna(*words.split()).failed(2)


def test_a_wrong_count_names_its_flag(puna: Puna) -> None:
    puna("plan", "tiny", "--seq", "many").failed(2, "--seq", "1.5M", "many")


def test_with_json_a_failure_is_one_object_on_stdout(puna: Puna) -> None:
    ending = puna("plan", "llama-3-8", "--json").failed(2, "hint: did you mean 'llama-3-8b'?")
    assert ending.json.keys() == {"error"}
    assert ending.json["error"].keys() == {"type", "message", "hint"}
    assert ending.json["error"]["type"] == "UsageError"
    assert ending.json["error"]["message"] in ending.err


def test_resume_refuses_settings_beside_it(puna: Puna, made: Any) -> None:
    for flag in ("--steps", "--seq", "--seed"):
        puna("train", "--out", made.trained, "--resume", flag, 7).failed(2, flag, "leave out")
    changed = puna("adapt", "--out", made.adapted, "--resume", "--set", "training.seed=1")
    changed.failed(1, "training.seed was 0, is 1", "training.checkpoint_every")
    assert puna("train", "--out", made.trained, "--resume", "--threads", 1, "--json").json["steps"] == 2


def test_another_language_is_taken_beside_resume_and_an_unknown_one_is_not(puna: Puna, made: Any) -> None:
    for flag in ("--lang", "--threads"):
        words = puna("train", "--out", made.trained, "--resume", flag, {"--lang": "zh", "--threads": 1}[flag])
        assert words.code == 0
        is_chinese = '<html lang="zh-Hant">' in (made.trained / "report.html").read_text()
        assert is_chinese == (flag == "--lang")
    puna("adapt", "--out", made.adapted, "--resume", "--lang", "de").failed(2, "--lang")
    puna("lab", "--lang", "zh").failed(2, "expected a study beside --lang")


@pytest.mark.parametrize(("is_equal", "code"), [(True, 0), (False, 1)])
def test_the_proof_of_resuming_answers_with_its_exit_code(puna: Puna, made: Any, monkeypatch, is_equal, code) -> None:
    facts = {"steps": 6, "saved_after": 3, "killed_after": 5, "threads": 1, "losses_equal": True, "sha256": "ab" * 32}
    proof = ResumeProof(**facts, state_equal=is_equal)
    monkeypatch.setattr("puna.jobs.verify_resume.verify_resume", lambda *_, **__: proof)
    words = ("train", "--data", made.shards, "--out", "never", "--precision", "float32", "--verify-resume")
    plain, ending = puna(*words), puna(*words, "--json")
    assert (plain.code, ending.code) == (code, code)
    assert ("NOT equal" in plain.out) is not is_equal
    assert ending.json.items() >= {**facts, "state_equal": is_equal}.items()
    assert ("error" in ending.json) is not is_equal


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DiskFull("no space", "free some"), 1, "error: no space\nhint: free some\n"),
        (Interrupted("stopped by SIGTERM; saved step 4", "", signal.SIGTERM), 143, "error: stopped by SIGTERM; saved"),
        (KeyboardInterrupt(), 130, "error: stopped by SIGINT; what was saved before is whole\n"),
        (FileNotFoundError(2, "No such file or directory", "a/b"), 1, "error: a/b: No such file or directory\n"),
        (ZeroDivisionError("division"), 1, "error: ZeroDivisionError: division\nhint: a bug: PUNA_DEBUG=1"),
    ],
)
def test_every_ending_has_its_code_and_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ending_of(monkeypatch, raising(error))(["demo"]) == code
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_swallowed_signal_is_remembered(signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        with suppress(KeyboardInterrupt):  # as a careless library does
            signal.raise_signal(signum)

    before = signal.getsignal(signum)
    assert ending_of(monkeypatch, act)([]) == 128 + signum
    assert signal.getsignal(signum) == before


def test_an_error_that_a_signal_turned_into_is_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("a module was half imported") from None

    assert ending_of(monkeypatch, act)([]) == 130
    assert "stopped by SIGINT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "signum"),
    [
        ("cyclopts", signal.SIGINT), ("cyclopts.utils", signal.SIGTERM), ("puna.jobs.evaluate", signal.SIGINT),
        ("torch", signal.SIGTERM), ("numpy", signal.SIGINT), ("torch.nn.functional", signal.SIGTERM),
    ],
)  # fmt: skip
def test_a_signal_during_an_import_ends_with_its_code(module: str, signum: int) -> None:
    command = [sys.executable, "-c", SIGNAL_AT_IMPORT, module, str(int(signum)), "evaluate", "nothing", "--text", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signum
    assert "Traceback" not in done.stderr
    assert f"error: stopped by {signum.name}" in done.stderr


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    command = f"{sys.executable} -m puna plan llama-3-8b --cards | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_stdout_is_utf8_whatever_the_locale(puna: Puna, puna_child: Puna, made: Any) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    ids = puna("tokens", "encode", "大漠孤烟直", "--tokenizer", made.tokenizer, "--json").json["ids"]
    for flags in ((), ("--json",)):
        ending = puna_child("tokens", "decode", *ids, "--tokenizer", made.tokenizer, *flags, **ascii_only)
        assert ending.code == 0, ending
        assert "大漠孤烟直" in ending.out
    cut = puna_child("tokens", "decode", ids[0], "--tokenizer", made.tokenizer, **ascii_only)
    assert cut.out == "\ufffd\n"


def test_an_argument_that_is_not_utf8_is_refused(puna: Puna, made: Any) -> None:
    puna("tokens", "encode", os.fsdecode(b"\xff"), "--tokenizer", made.tokenizer).failed(2, "UTF-8")


def test_text_may_begin_with_a_hyphen(puna: Puna, made: Any) -> None:
    assert puna("tokens", "encode", "- a list", "--tokenizer", made.tokenizer, "--json").json["text"] == "- a list"


def test_the_error_object_stays_readable_where_stdout_is_ascii(puna_child: Puna) -> None:
    ending = puna_child("plan", "大漠", "--json", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "大漠" in json.loads(ending.out)["error"]["message"]
