"""The source files of the project, parsed once."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Source:
    """A Python file: `name` is its dotted module name, `folder` its first folder under puna/ (or '')."""

    path: Path
    name: str
    text: str
    tree: ast.Module

    @property
    def folder(self) -> str:
        parts = self.path.parts
        return parts[1] if len(parts) > 2 else ""

    def at(self, node: ast.AST) -> str:
        """Where a node stands, for messages."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


def _read(root: Path, top: str) -> dict[str, Source]:
    sources = {}
    for path in sorted((root / top).rglob("*.py")):
        relative = path.relative_to(root)
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        sources[name] = Source(relative, name, text, ast.parse(text))
    return sources


@pytest.fixture(scope="session")
def puna_sources(root: Path) -> dict[str, Source]:
    """Every module of the package by its dotted name."""
    return _read(root, "puna")


@pytest.fixture(scope="session")
def test_sources(root: Path) -> dict[str, Source]:
    """Every test file."""
    return _read(root, "tests")
