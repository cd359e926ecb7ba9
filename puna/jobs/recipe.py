"""Recipes: TOML tables -> frozen dataclasses, exactly or not at all, and back.

Types are exact (an int may stand for a float, a bool never for an int), floats are finite, an unknown key is refused
with the nearest one, and a union of dataclasses is chosen by its `kind`. Law: fill(dump(x)) = x.
"""

import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from puna.errors import UsageError, unknown_name

__all__ = ["apply_settings", "dump_recipe", "fill", "read_recipe"]

SCHEMA = 1
_Filled = TypeVar("_Filled")


def read_recipe(path: Path) -> dict[str, Any]:
    """The tables of a recipe file. Errors: UsageError where it is missing, not TOML, or of another schema."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such recipe", "recipes/ holds examples") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected TOML, got: {error}") from None
    if table.pop("schema", None) != SCHEMA:
        raise UsageError(f"{path}: expected schema = {SCHEMA}", f"write 'schema = {SCHEMA}' at the top of the recipe")
    return table


def apply_settings(table: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The tables with each `section.field=value` set; values are TOML, a bare word is a string."""
    result = _copy(table)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: expected section.field=value", "for example --set training.seed=1")
        *parents, name = path.strip().split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UsageError(f"--set {path}: '{parent}' is not a table")
        place[name] = _toml_value(text.strip())
    return result


def fill(kind: type[_Filled], table: Mapping[str, Any], path: str = "") -> _Filled:
    """Build a dataclass from a table. Errors: UsageError naming the path, what was expected and what was got."""
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind) if item.init}  # type: ignore[arg-type]
    for name in table:
        if name not in known:
            raise unknown_name("key", f"{path}{name}", [f"{path}{key}" for key in known])
    for name, item in known.items():
        if name not in table and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"{path}{name}: missing", f"it is a {_type_name(hints[name])}")
    values = {name: _convert(hints[name], value, f"{path}{name}") for name, value in table.items()}
    return kind(**values)


def dump_recipe(value: object) -> str:
    """A dataclass as TOML text that `fill` reads back to an equal one; fields that are None are left out."""
    lines = [f"schema = {SCHEMA}"]
    _dump_table(value, "", lines)
    return "\n".join(lines) + "\n"


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise unknown_name(f"value of {path}", str(value), [str(choice) for choice in get_args(hint)])
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, path)
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_convert(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    elif is_dataclass(hint):
        if isinstance(value, Mapping):
            return fill(hint, value, f"{path}.")  # type: ignore[arg-type]
    elif hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif type(value) is hint and hint is not float:
        return value
    raise UsageError(f"{path}: expected {_type_name(hint)}, got {value!r}")


def _convert_union(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    choices = tuple(choice for choice in choices if choice is not type(None))
    if len(choices) == 1:
        return _convert(choices[0], value, path)
    kinds = {get_args(get_type_hints(choice)["kind"])[0]: choice for choice in choices}
    if not isinstance(value, Mapping) or "kind" not in value:
        raise UsageError(f"{path}: expected a table with kind = one of {', '.join(kinds)}, got {value!r}")
    if value["kind"] not in kinds:
        raise unknown_name(f"{path}.kind", str(value["kind"]), kinds)
    return fill(kinds[value["kind"]], value, f"{path}.")


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_name(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {_type_name(get_args(hint)[0])}"
    names = {int: "whole number", float: "finite number", str: "string", bool: "true or false", Path: "path"}
    return names.get(hint, "table" if is_dataclass(hint) else str(hint))


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _dump_table(value: Any, path: str, lines: list[str]) -> None:
    tables = []
    for item in fields(value):
        content = getattr(value, item.name)
        if is_dataclass(content) or (isinstance(content, tuple) and content and is_dataclass(content[0])):
            tables.append((f"{path}{item.name}", content))
        elif content is not None:
            lines.append(f"{item.name} = {_dump_value(content)}")
    for name, content in tables:
        for entry in content if isinstance(content, tuple) else (content,):
            lines += ["", f"[[{name}]]" if isinstance(content, tuple) else f"[{name}]"]
            _dump_table(entry, f"{name}.", lines)


def _dump_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_dump_value(item) for item in value) + "]"
    return repr(value)


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()}
