"""What is not written here: names that say nothing, calls that run foreign code, writing past files.py."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Sources = dict[str, Any]

NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "other", "others"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "hasattr",
    "__import__",
    "os.system",
    "torch.jit.load",
    "torch.export.load",
    "torch.hub.load",
    "yaml.load",
}
CHECKED_INPUT = {"weights", "text", "tokens", "cli"}  # where data enters, a check must survive `python -O`
WRITERS = {"write_text", "write_bytes", "touch"}
SAVERS = {"torch.save", "np.save", "np.savez", "numpy.save", "json.dump"}
NOT_FILES = {"os.devnull", "_CLEAR"}  # the null device; the kernel's switch that resets a process's peak memory


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


def is_banned_call(call: ast.Call, name: str) -> bool:
    if name == "torch.load":
        return keyword(call, "weights_only") is not True
    if name.split(".")[0] == "pickle":
        return True
    return name in CALLS or any(
        k.arg == "shell" and not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in call.keywords
    )


def is_writing(call: ast.Call, name: str) -> bool:
    """Whether a call opens a file for writing, or writes one whole, outside a staged folder."""
    if name in SAVERS:
        return True
    receiver, _, method = name.rpartition(".")
    if "staged" in receiver or {receiver, *map(ast.unparse, call.args[:1])} & NOT_FILES:
        return False
    if receiver and method in WRITERS:
        return receiver != "files"
    if method != "open":
        return False
    modes = (*call.args[0 if receiver else 1 :], *(k.value for k in call.keywords if k.arg == "mode"))
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    return any(set(text) <= set("rwxabt+") and set(text) & set("wxa+") for text in texts)


def found(sources: Sources, is_wrong: Callable[[ast.Call, str], bool]) -> list[str]:
    return [
        f"{source.at(call)} {name}"
        for source in sources.values()
        for call, name in calls(source.tree)
        if is_wrong(call, name)
    ]


def test_no_file_has_a_name_that_says_nothing(root: Path) -> None:
    paths = [path for top in ("puna", "tests", "bench", "docs") for path in (root / top).rglob("*.*")]
    wrong = [str(p) for p in paths if set(p.stem.split("_")) & NAMES and p.suffix in (".py", ".md")]
    assert not wrong, "\n".join(wrong)


def test_no_call_runs_foreign_code_or_asks_what_an_object_has(puna_sources: Sources) -> None:
    wrong = found(puna_sources, is_banned_call)
    assert not wrong, "\n".join(wrong)


def test_files_are_written_only_through_files(puna_sources: Sources) -> None:
    others = {name: source for name, source in puna_sources.items() if name != "puna.files"}
    wrong = found(others, is_writing)
    assert not wrong, "\n".join(wrong)


def test_there_are_no_globals(puna_sources: Sources) -> None:
    wrong = [
        source.at(node)
        for source in puna_sources.values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Global)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_assert_checks_what_comes_from_outside(puna_sources: Sources) -> None:
    wrong = [
        source.at(node)
        for source in puna_sources.values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Assert) and source.folder in CHECKED_INPUT
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "pickle.loads(b)",
        "subprocess.run(c, shell=True)",
        "eval(s)",
        "hasattr(x, 'y')",
    ],
)
def test_the_rule_sees_a_banned_call(line: str) -> None:
    assert [name for call, name in calls(ast.parse(line)) if is_banned_call(call, name)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("path.open('w')", True),
        ("open(path, 'ab')", True),
        ("path.open(mode='r+')", True),
        ("path.write_text(s)", True),
        ("torch.save(x, path)", True),
        ("path.open()", False),
        ("open('wax')", False),
        ("path.open('rb')", False),
        ("write_text(path, s)", False),
        ("files.write_text(path, s)", False),
        ("(staged / name).open('wb')", False),
        ("(folder / name).open('wb')", True),
        ("open(os.devnull, 'w')", False),
    ],
)
def test_the_rule_sees_writing(line: str, expected: bool) -> None:
    assert any(is_writing(call, name) for call, name in calls(ast.parse(line))) is expected
