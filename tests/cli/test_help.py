"""Help answers at once, imports nothing heavy, and says what every flag does."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from cyclopts import App

from puna.cli.verbs import app

HEAVY = {"torch", "numpy", "fastapi", "pydantic", "matplotlib", "tokenizers", "transformers"}
VERBS = (
    "demo",
    "doctor",
    "plan",
    "tokens",
    "train",
    "adapt",
    "compress",
    "evaluate",
    "embed",
    "generate",
    "weights",
    "lab",
    "explain",
)
PAGES = (
    (),
    *((verb,) for verb in VERBS),
    *(("tokens", name) for name in ("train", "encode", "decode", "build")),
    ("adapt", "merge"),
    ("weights", "show"),
)


def seconds(*arguments: str) -> float:
    """How long Python takes with these arguments."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def answers_within(times: float, *arguments: str) -> bool:
    """Whether one of fifteen runs of `puna ... --help` takes less than so many times the parser's own import, run beside it."""
    parser, page = float("inf"), float("inf")
    for _ in range(15):
        parser = min(parser, seconds("-c", "import cyclopts"))
        page = min(page, seconds("-m", "puna", *arguments, "--help"))
        if page < times * parser:
            return True
    return False


def command(path: tuple[str, ...]) -> App:
    found = app
    for name in path:
        found = found[name]
    return found


def test_help_takes_little_more_than_its_parser() -> None:
    assert answers_within(4)


SOME = [page if number % 4 == 1 else pytest.param(page, marks=pytest.mark.nightly) for number, page in enumerate(PAGES)]


@pytest.mark.parametrize("path", SOME, ids=" ".join)
def test_no_page_of_help_takes_long(path: tuple[str, ...]) -> None:
    assert answers_within(10, *path)


@pytest.mark.parametrize("path", [(), ("demo",), ("plan",)], ids=" ".join)
def test_help_imports_nothing_heavy(path: tuple[str, ...]) -> None:
    code = "import sys; from puna.cli.main import run; run(sys.argv[1:]); print('\\n', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *path, "--help"], check=True, capture_output=True, text=True)
    imported = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "cyclopts" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("path", PAGES, ids=" ".join)
def test_a_page_of_help_is_clean(path: tuple[str, ...], puna: Callable[..., Any]) -> None:
    page = puna(*path, "--help")
    assert page.code == 0
    assert page.err == ""
    assert page.out.startswith(f"Usage: {' '.join(('puna', *path))}")
    for odd in (r"--no-", r"--\w+\.\w+", r"\[default: (None|False|\(\)|\"\"|)\]", "----", r"ARGS"):
        assert not re.search(odd, page.out), odd
    assert max(map(len, page.out.splitlines())) <= 80


@pytest.mark.parametrize("path", PAGES[1:], ids=" ".join)
def test_every_parameter_says_what_it_is(path: tuple[str, ...]) -> None:
    found = command(path)
    silent = [
        argument.name
        for argument in (found.assemble_argument_collection(parse_docstring=True) if found.default_command else ())
        if argument.show and not argument.parameter.help
    ]
    assert found.help or found.default_command.__doc__
    assert not silent


def test_the_verbs_stand_in_the_order_of_the_work(puna: Callable[..., Any]) -> None:
    listed = re.findall(r"^│ (\w+) ", puna("--help").out, re.MULTILINE)
    assert listed == list(VERBS)


def test_version_is_the_package_version(puna: Callable[..., Any]) -> None:
    from puna import __version__

    assert puna("--version").out.strip() == __version__
