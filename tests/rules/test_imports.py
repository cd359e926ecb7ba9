"""Who may import whom: the table of docs/house.md, section 2."""

import ast
from collections.abc import Iterator
from typing import Any

import pytest

LEAVES = {"errors", "files", "child"}
TABLE: dict[str, set[str]] = {
    "arch": set(),
    "text": set(),
    "report": set(),
    "tokens": {"text"},
    "model": {"arch"},
    "weights": {"arch", "model", "tokens"},
    "training": {"arch", "model", "tokens", "text"},
    "adaptation": {"arch", "model", "tokens", "text"},
    "compression": {"arch", "model", "tokens", "text"},
    "evaluation": {"arch", "model", "tokens"},
    "generation": {"arch", "model", "tokens"},
    "planning": {"arch"},
    "serving": {"arch", "model", "tokens", "weights", "generation", "planning"},
}
TABLE["jobs"] = set(TABLE)
TABLE["lab"] = TABLE["topics"] = {*TABLE, "jobs"}
TABLE["cli"] = {*TABLE, "lab", "topics"}

HEADERS_MAY_IMPORT = {"arch"}
TORCH_FREE = {"arch", "text", "tokens", "report", "planning", "cli"}
NEVER = {"transformers", "peft", "pickle", "dill", "yaml", "requests"}
HEAVY = {
    "cyclopts",
    "jinja2",
    "matplotlib",
    "numpy",
    "psutil",
    "pyarrow",
    "rich",
    "safetensors",
    "tiktoken",
    "tokenizers",
    "torch",
    "zstandard",
}

Sources = dict[str, Any]


def imported(tree: ast.AST, sources: Sources) -> Iterator[tuple[ast.stmt, str]]:
    """(statement, dotted module) of every import in a tree; `from puna.x import y` names puna.x.y where that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node, full if full in sources else str(node.module)


def at_load(tree: ast.Module) -> ast.Module:
    """The tree without what only runs when a function is called, and without `if TYPE_CHECKING:`."""

    class Loaded(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

        visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    return Loaded().visit(ast.parse(ast.unparse(tree)))


@pytest.fixture(scope="module")
def loads(puna_sources: Sources) -> dict[str, set[str]]:
    """Every top-level package that importing a module of ours loads, directly or through others of ours."""
    direct = {
        name: {module for _, module in imported(at_load(source.tree), puna_sources)} | {name.rpartition(".")[0]} - {""}
        for name, source in puna_sources.items()
    }

    def packages(name: str) -> set[str]:
        reached, front = {name}, [name]
        while front:
            front = [module for here in front for module in direct.get(here, ()) if module not in reached]
            reached.update(front)
        return {module.split(".")[0] for module in reached}

    return {name: packages(name) for name in direct}


def test_every_folder_is_in_the_table(puna_sources: Sources) -> None:
    assert {source.folder for source in puna_sources.values()} - {""} <= TABLE.keys()


def test_folders_import_only_what_the_table_allows(puna_sources: Sources) -> None:
    wrong = []
    for source in puna_sources.values():
        allowed = LEAVES | {source.folder} | (TABLE[source.folder] if source.folder else set())
        if source.name == "puna.weights.headers":
            allowed = LEAVES | HEADERS_MAY_IMPORT | {"weights"}
        for node, module in imported(source.tree, puna_sources):
            package, *rest = module.split(".")
            if package == "puna" and rest and rest[0] not in allowed and source.name != "puna.__main__":
                wrong.append(f"{source.at(node)} imports {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", sorted(TORCH_FREE))
def test_what_has_no_tensors_loads_without_torch(
    folder: str, puna_sources: Sources, loads: dict[str, set[str]]
) -> None:
    modules = [source.name for source in puna_sources.values() if source.folder == folder]
    assert [name for name in modules if "torch" in loads[name]] == []


@pytest.mark.parametrize("name", ["puna", "puna.errors", "puna.files", "puna.child", "puna.weights.headers"])
def test_leaves_and_headers_load_without_torch(name: str, loads: dict[str, set[str]]) -> None:
    assert "torch" not in loads[name]


def test_matplotlib_is_loaded_only_when_a_figure_is_drawn(loads: dict[str, set[str]]) -> None:
    assert [name for name, packages in loads.items() if "matplotlib" in packages] == []


def test_some_packages_are_never_imported(puna_sources: Sources) -> None:
    found = [
        f"{source.at(node)} imports {module}"
        for source in puna_sources.values()
        for node, module in imported(source.tree, puna_sources)
        if module.split(".")[0] in NEVER
    ]
    assert not found, "\n".join(found)


def test_an_import_inside_a_function_keeps_something_heavy_lazy(
    puna_sources: Sources, loads: dict[str, set[str]]
) -> None:
    light = []
    for source in puna_sources.values():
        top = {ast.unparse(node) for node, _ in imported(at_load(source.tree), puna_sources)}
        for node, module in imported(source.tree, puna_sources):
            is_lazy = ast.unparse(node) not in top and not is_for_types(source.tree, node)
            is_verb = source.folder == "cli" and module.startswith(
                "puna.jobs."
            )  # one call needs one of all verbs' jobs
            if is_lazy and not is_verb and not HEAVY & loads.get(module, {module.split(".")[0]}):
                light.append(f"{source.at(node)} imports {module}")
    assert not light, "\n".join(light)


def is_for_types(tree: ast.Module, statement: ast.stmt) -> bool:
    """Whether an import stands under `if TYPE_CHECKING:`."""
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    return any(inner is statement for block in blocks for inner in ast.walk(block))
