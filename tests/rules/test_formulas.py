"""docs/formulas.md cannot rot: every section of the mathematics has a row, and the code and the test it names exist."""

import ast
import re
from pathlib import Path

import pytest

ROW = re.compile(r"^\| (1\.\d+) \| (.+) \| `([^`]+)`( \w+)? \| `([^`]+)` (\w+) \|$")
SECTION = re.compile(r"^### (1\.\d+) ", re.MULTILINE)


@pytest.fixture(scope="module")
def rows(root: Path) -> list[tuple[str, str, str, str, str]]:
    lines = (root / "docs" / "formulas.md").read_text("utf-8").splitlines()
    body = lines[lines.index("|---|---|---|---|") + 1 :]
    found = [ROW.match(line) for line in body]
    assert all(found), [line for line, match in zip(body, found, strict=True) if match is None]
    return [(m[1], m[3], (m[4] or "").strip(), m[5], m[6]) for m in found if m is not None]


def defined(path: Path) -> set[str]:
    """The functions and classes that a file defines at its top."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, kinds)}


def test_every_section_of_the_mathematics_has_a_row_in_their_order(root: Path, rows: list[tuple[str, ...]]) -> None:
    sections = SECTION.findall((root / "docs" / "math.md").read_text("utf-8"))
    assert list(dict.fromkeys(section for section, *_ in rows)) == sections


def test_every_row_names_code_and_a_test_that_exist(root: Path, rows: list[tuple[str, str, str, str, str]]) -> None:
    for _, code, name, test, law in rows:
        assert (root / code).is_file(), code
        assert not name or name in defined(root / code), (code, name)
        assert law in defined(root / test), (test, law)
