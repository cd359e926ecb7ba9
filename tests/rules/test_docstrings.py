"""Every module, and every public class, function and method, says in a sentence what it is."""

import ast
from collections.abc import Iterator
from typing import Any

Sources = dict[str, Any]
Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(node: ast.Module | ast.ClassDef) -> Iterator[Documented]:
    for child in node.body:
        if isinstance(child, Documented) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public(child)


def test_every_module_says_what_it_is(puna_sources: Sources) -> None:
    assert [str(source.path) for source in puna_sources.values() if not ast.get_docstring(source.tree)] == []


def test_everything_public_says_what_it_is(puna_sources: Sources) -> None:
    silent = [
        f"{source.at(node)} {node.name}"
        for source in puna_sources.values()
        for node in public(source.tree)
        if not ast.get_docstring(node)
    ]
    assert not silent, "\n".join(silent)
