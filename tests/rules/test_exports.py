"""`__all__` says what a module offers: everything public, nothing else, in order."""

import ast
from typing import Any

Sources = dict[str, Any]


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def defined(tree: ast.Module) -> dict[str, bool]:
    """Top-level names, and whether each must be offered: functions and classes must, unless a decorator registers them
    as commands; what is imported may be.
    """
    names: dict[str, bool] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            is_command = any(ast.unparse(decorator).startswith("app.") for decorator in node.decorator_list)
            names[node.name] = not (node.name.startswith("_") or is_command)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: False for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id: False for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, each by name."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_every_public_function_and_class_is_exported(puna_sources: Sources) -> None:
    missing = [
        f"{source.path}: {name}"
        for source in puna_sources.values()
        for name, must in defined(source.tree).items()
        if must and name not in (exported(source.tree) or [])
    ]
    assert not missing, "\n".join(missing)


def test_every_exported_name_is_defined_in_its_module(puna_sources: Sources) -> None:
    for source in puna_sources.values():
        names = defined(source.tree)
        if "__getattr__" not in names:  # the package itself resolves its verbs on first use
            assert set(exported(source.tree) or []) <= names.keys(), source.path


def test_exports_are_sorted(puna_sources: Sources) -> None:
    for source in puna_sources.values():
        names = exported(source.tree) or []
        assert names == sorted(set(names), key=order), source.path
