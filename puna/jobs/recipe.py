"""Recipes: TOML tables -> frozen dataclasses, exactly or not at all, and back.

Types are exact (an int may stand for a float, a bool never for an int), floats are finite, an unknown key is refused
with the nearest one, and a union of dataclasses is chosen by its `kind`. Law: fill(read(dump(x))) = x.
"""

import sys
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from puna.errors import UsageError, unknown_name

__all__ = ["apply_settings", "dump_recipe", "fill", "read_recipe", "section"]

SCHEMA = 1
_Filled = TypeVar("_Filled")


def read_recipe(path: Path) -> dict[str, Any]:
    """The tables of a recipe file. Errors: UsageError where it is missing, not TOML, or of another schema."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such recipe", "recipes/ holds examples") from None
    except OSError as error:
        raise UsageError(f"{path}: expected a recipe, got: {error.strerror}", "name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: expected TOML, got: {error}", "https://toml.io shows what TOML looks like") from None
    schema = table.pop("schema", None)
    if type(schema) is not int or schema != SCHEMA:
        raise UsageError(
            f"{path}: expected schema = {SCHEMA}, got {schema!r}", f"write 'schema = {SCHEMA}' at the top of the recipe"
        )
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
                raise UsageError(f"--set {path}: '{parent}' is not a table", "set the whole of it, or write a recipe")
        place[name] = _toml_value(text.strip())
    return result


def section(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of a table's section, empty where there is none. Errors: UsageError where it is no table."""
    value = table.get(name, {})
    if not isinstance(value, Mapping):
        raise UsageError(f"{name}: expected a table, got {value!r}", f"write [{name}] and its fields below")
    return dict(value)


def fill(kind: type[_Filled], table: Mapping[str, Any], path: str = "") -> _Filled:
    """Build a dataclass from a table.

    Errors: UsageError naming the path, what was expected and what was got; also for what the dataclass itself refuses.
    """
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind) if item.init}  # type: ignore[arg-type]
    for name in table:
        if name not in known:
            raise unknown_name("key", f"{path}{name}", [f"{path}{key}" for key in known])
    for name, item in known.items():
        if name not in table and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"{path}{name}: missing", f"it is a {_type_name(hints[name])}")
    values = {name: _convert(hints[name], value, f"{path}{name}") for name, value in table.items()}
    try:
        return kind(**values)
    except UsageError as error:
        raise UsageError(_placed(error.message, path), error.hint) from None


def dump_recipe(value: object) -> str:
    """A dataclass as TOML text that `fill` reads back to an equal one; fields that are None are left out.

    Errors: UsageError for a path that is not Unicode, which TOML cannot hold.
    """
    lines = [f"schema = {SCHEMA}"]
    _dump_table(value, "", lines)
    return "\n".join(lines) + "\n"


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in get_args(hint)):
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
    elif hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif type(value) is hint and hint is not float:
        return value
    raise UsageError(f"{path}: expected {_type_name(hint)}, got {value!r}", f"write it as a {_type_name(hint)}")


def _convert_union(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    choices = tuple(choice for choice in choices if choice is not type(None))
    if len(choices) == 1:
        return _convert(choices[0], value, path)
    kinds = {get_args(get_type_hints(choice)["kind"])[0]: choice for choice in choices}
    if not isinstance(value, Mapping) or "kind" not in value:
        expected = f"a table with kind = {' or '.join(kinds)}"
        raise UsageError(f"{path}: expected {expected}, got {value!r}", f"say which with {path}.kind")
    if not isinstance(value["kind"], str) or value["kind"] not in kinds:
        raise unknown_name(f"{path}.kind", str(value["kind"]), kinds)
    return fill(kinds[value["kind"]], value, f"{path}.")


def _placed(message: str, path: str) -> str:
    """The message with its path in front, whose last part it may name itself."""
    parent, dot, last = path.removesuffix(".").rpartition(".")
    return (parent + dot if message.startswith(last) else path) + message


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(sorted({_type_name(choice) for choice in get_args(hint) if choice is not type(None)}))
    if get_origin(hint) is tuple:
        return f"list, each a {_type_name(get_args(hint)[0])}"
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    names = {int: "whole number", float: "finite number", str: "string", bool: "true or false", Path: "path"}
    return names.get(hint, "table" if is_dataclass(hint) else str(hint))


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return table["value"] if table.keys() == {"value"} else text  # a line break must not smuggle in a second key


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
        return '"' + "".join(map(_dump_character, str(value))) + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_dump_value(item) for item in value) + "]"
    return repr(value)


def _dump_character(character: str) -> str:
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        raise UsageError("a path that is not Unicode cannot be written in a recipe", "rename the file or the folder")
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{code:08x}"


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()}
