"""What the READMEs and docs/ promise: every command and the Python run, at tiny settings; what is cited and linked exists."""

import os
import re
import runpy
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from puna.cli.main import run
from puna.cli.verbs import app

TINY = {"--model": "tiny", "--steps": "3", "--vocab-size": "400", "--max-new-tokens": "8"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CITATION = re.compile(r"docs/(\w+)\.md((?:,| and| sections?| \d+(?:\.\d+)*)*)")
HEADING = re.compile(r"^#+ (\d+(?:\.\d+)*)\.? ", re.MULTILINE)
FLAG = re.compile(r"--[a-z][a-z-]+")
HELP_FLAG = re.compile(r"^│[ *]+(--[a-z][a-z-]+)", re.MULTILINE)
PROGRAMS = ("puna", "make", "python3", ".venv/bin/pip")


def fences(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path, program: str) -> list[str]:
    """The lines of a page's console blocks that call a program."""
    lines = [line for body in fences(page, "console") for line in body.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith(f"$ {program} ")]


def at_tiny_settings(line: str) -> list[str]:
    words = shlex.split(line)[1:]
    return [TINY.get(before, word) for before, word in zip(["", *words], words, strict=False)]


@pytest.fixture
def workshop(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the texts that the README's commands name: here, the documentation itself."""
    pages = sorted((root / "docs").glob("*.md"))
    for folder in ("plays", "prose"):
        (tmp_path / folder).mkdir()
    for page in pages:
        (tmp_path / "plays" / page.name).write_bytes(page.read_bytes())
    for page in pages[:12]:
        (tmp_path / "prose" / page.name).write_bytes(page.read_bytes()[:3000])
    for name in ("held-out.txt", "prose-held-out.txt"):
        (tmp_path / name).write_bytes((root / "README.md").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ.update(before)


def test_every_command_of_the_readme_and_its_python_run(
    root: Path, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = commands(root / "README.md", "puna")
    assert len(lines) >= 10
    for line in lines:
        code = run(at_tiny_settings(line))
        assert code == 0, f"{line}: exit {code}\n{capsys.readouterr().err}"
    (python,) = fences(root / "README.md", "python")
    assert len(python.splitlines()) <= 12
    script = workshop / "readme.py"
    script.write_text(python, encoding="utf-8")
    runpy.run_path(str(script))


def test_every_block_of_the_readme_is_understood(root: Path) -> None:
    blocks = FENCE.findall((root / "README.md").read_text("utf-8"))
    assert {kind for kind, _ in blocks} <= {"console", "python"}
    prompts = [line for kind, body in blocks if kind == "console" for line in body.splitlines() if line[:2] == "$ "]
    strange = [line for line in prompts if line.split()[1] not in PROGRAMS]
    assert not strange, f"a command starts with one of {PROGRAMS}: {strange}"
    assert not re.findall(r"^puna .*", "\n".join(body for _, body in blocks), re.MULTILINE), "a command without its $"


def test_the_chinese_readme_has_the_same_commands_and_python(root: Path) -> None:
    english, chinese = root / "README.md", root / "README.zh.md"
    for program in PROGRAMS:
        assert commands(chinese, program) == commands(english, program)
    assert fences(chinese, "python") == fences(english, "python")


def test_every_page_of_a_verb_names_exactly_its_flags(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synopses = [body.replace("\n ", " ") for page in (root / "docs").glob("*.md") for body in fences(page, "")]
    lines = [line for body in synopses for line in body.splitlines() if line.startswith("puna ")]
    assert len(lines) >= 14
    for line in lines:
        verb = re.match(r"puna ([a-z]+(?: [a-z]+)?)", line)
        assert verb is not None
        app([*verb[1].split(), "--help"], console=Console(width=200))  # its own: the app keeps the first one it makes
        found = set(HELP_FLAG.findall(capsys.readouterr().out)) - {"--help"}
        assert set(FLAG.findall(line)) == found, line


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "CONTRIBUTING.md"])
def test_every_make_line_is_a_target(root: Path, name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (root / "Makefile").read_text("utf-8"), re.MULTILINE))
    page = root / name
    inline = re.findall(r"`make ([a-z]+)", page.read_text("utf-8"))
    called = {line.split()[1] for line in commands(page, "make")} | set(inline)
    assert called
    assert called <= targets


def test_every_link_between_the_pages_leads_somewhere(root: Path) -> None:
    pages = [*root.glob("README*.md"), root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))]
    lost = [f"{page.name}: {link}" for page, link in links if "://" not in link and not (page.parent / link).exists()]
    assert not lost, "\n".join(lost)


def test_every_section_that_the_code_cites_exists(root: Path) -> None:
    sections = {page.stem: set(HEADING.findall(page.read_text("utf-8"))) for page in (root / "docs").glob("*.md")}
    files = [path for top in ("puna", "tests", "bench") for path in (root / top).rglob("*.py")]
    cited = [(path, match) for path in files for match in CITATION.finditer(path.read_text("utf-8"))]
    assert len(cited) > 10
    lost = [
        f"{path.relative_to(root)}: {match[0]}"
        for path, match in cited
        if match[1] not in sections or not set(re.findall(r"\d[\d.]*", match[2])) <= sections[match[1]]
    ]
    assert not lost, "\n".join(lost)
