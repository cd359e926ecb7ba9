"""A file is one idea in at most 400 lines; a function fits 40, a forward pass 25, signatures not counted.

The docstring of a function in cli/ is the text of its --help, and not counted either.
"""

import ast
from typing import Any

Sources = dict[str, Any]

FILE_LINES, FUNCTION_LINES, FORWARD_LINES = 400, 40, 25


def test_no_file_is_longer_than_400_lines(puna_sources: Sources, test_sources: Sources) -> None:
    long = [
        f"{source.path}: {count} lines"
        for source in (puna_sources | test_sources).values()
        if (count := source.text.count("\n")) > FILE_LINES
    ]
    assert not long, "\n".join(long)


def test_no_function_is_longer_than_40_lines_and_no_forward_than_25(
    puna_sources: Sources, test_sources: Sources
) -> None:
    long = []
    for source in (puna_sources | test_sources).values():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                is_help = source.folder == "cli" and ast.get_docstring(node) is not None
                count = (node.end_lineno or 0) - node.body[1 if is_help else 0].lineno + 1
                if count > (FORWARD_LINES if node.name == "forward" else FUNCTION_LINES):
                    long.append(f"{source.at(node)} {node.name}: {count} lines")
    assert not long, "\n".join(long)
