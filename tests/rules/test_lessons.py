"""The chapters of docs/zh cannot rot: their Python and commands run, what they show is still printed, what they name exists."""

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest

from bench.lessons import CHAPTERS, cells, commands, notebook, parts, simplified
from puna.cli.main import run

NAMES = ("vectors", "attention", "gqa", "norms", "activations", "rope", "training", "compression", "lora")
PRINTED = re.compile(r"\bprint\(.*\)  # (.+)$", re.MULTILINE)
NAMED = re.compile(r"\]\((\.\./\.\./(?:puna|tests)/[\w/]+\.py)\)(?: 的 `(\w+)`)?")
SINGLE = re.compile(r"^(\S+(?: \S+)*) {2,}\S+(?: \S+)*$")  # a name and one value
KINDS = {"text", "math", "python", "console"}


def page_of(name: str) -> Path:
    return CHAPTERS / f"{name}.md"


def blocks(name: str, kind: str) -> list[str]:
    return [body for found, body in parts(page_of(name).read_text("utf-8")) if found == kind]


def shown_names(console: str) -> set[str]:
    """The names in a console block that stand beside a single number."""
    return {found[1] for line in console.splitlines() if (found := SINGLE.match(line)) and line[:2] != "$ "}


def test_every_chapter_is_there_and_the_index_leads_to_each() -> None:
    assert {page.stem for page in CHAPTERS.glob("*.md")} == {*NAMES, "index"}
    linked = re.findall(r"\]\((\w+)\.md\)", page_of("index").read_text("utf-8"))
    assert tuple(dict.fromkeys(linked)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_has_a_formula_numbers_python_and_answers(name: str) -> None:
    text = page_of(name).read_text("utf-8")
    assert {kind for kind, _ in parts(text)} == KINDS
    assert len(blocks(name, "python")) in (1, 2)
    for heading in ("公式", "數字", "自己動手", "筆記說對的，與更正", "在哪裡", "想一想", "答案"):
        assert f"\n## {heading}\n" in text, heading
    questions, _, answers = text.partition("\n## 想一想\n")[2].partition("\n## 答案\n")
    assert re.findall(r"^\d\.", questions, re.MULTILINE) == re.findall(r"^\d\.", answers, re.MULTILINE)
    assert "—" not in text, "no em-dashes"


@pytest.mark.parametrize("name", NAMES)
def test_a_chapters_python_runs_and_prints_what_its_comments_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lesson = "\n".join(blocks(name, "python"))
    script = tmp_path / "lesson.py"
    script.write_text(lesson, encoding="utf-8")
    runpy.run_path(str(script))
    assert capsys.readouterr().out.split() == " ".join(PRINTED.findall(lesson)).split()


@pytest.mark.parametrize("name", [*NAMES, "index"])
def test_a_chapters_commands_run_and_still_print_the_names_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # without runs/: what names no model is shown on tiny
    for console in blocks(name, "console"):
        printed = ""
        for line in commands(console):
            code = run(shlex.split(line)[1:])
            out, err = capsys.readouterr()
            assert code == 0, f"{line}: exit {code}\n{err}"
            printed += out
        lost = {each for each in shown_names(console) if f"\n{each}\t" not in printed} if printed else set()
        assert not lost, f"{name}: {lost}"


@pytest.mark.parametrize("name", [*NAMES, "index"])
def test_every_link_of_a_chapter_leads_somewhere(name: str) -> None:
    page = page_of(name)
    links = re.findall(r"\]\(([^)#\s]+)", "".join(blocks(name, "text")))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not lost


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_names_code_and_a_test_that_exist(name: str) -> None:
    page = page_of(name)
    named = NAMED.findall(page.read_text("utf-8").partition("\n## 在哪裡\n")[2])
    assert any("/puna/" in path and inside for path, inside in named), "its code"
    assert any("/tests/" in path and inside.startswith("test_") for path, inside in named), "its test"
    for path, inside in named:
        tree = ast.parse((page.parent / path).read_text("utf-8"))
        assert not inside or inside in {getattr(node, "name", "") for node in tree.body}, (path, inside)


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_becomes_cells_that_hold_all_of_its_python_and_commands(name: str) -> None:
    code = [source for kind, source in cells(page_of(name).read_text("utf-8")) if kind == "code"]
    calls = [line for source in code for line in source.splitlines() if line.startswith("assert run([")]
    assert len(calls) == sum(len(commands(body)) for body in blocks(name, "console"))
    assert [body.strip() for body in blocks(name, "python")] == [each for each in code if "assert run([" not in each]
    for source in code:
        ast.parse(source)


@pytest.mark.parametrize("name", [*NAMES, "index"])
def test_a_chapter_makes_a_valid_notebook(name: str) -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install 'puna[docs]' brings it")
    lesson = notebook(page_of(name))
    nbformat.validate(lesson)
    assert lesson.cells[0].cell_type == "code"
    prose = [cell.source for cell in lesson.cells if cell.cell_type == "markdown"]
    assert all(prose)
    assert not [text for text in prose if "```math" in text or "```python" in text]


def test_a_page_is_derived_in_simplified_chinese_and_its_fences_stay() -> None:
    pytest.importorskip("opencc", reason="pip install 'puna[docs]' brings it")
    fence = "```console\n$ puna explain rope --lang zh\n記憶體\n```\n"
    page = f"把向量一列一列排列在記憶體裡，再正規化。\n\n{fence}見[注意力](attention.md)。\n"
    assert simplified(page) == f"把向量一行一行排列在内存里，再归一化。\n\n{fence}见[注意力](attention.md)。\n"
