"""Going on with a run: what may differ from when it was saved, what may not, and what costs the equality to the bit.

A run's bits are a function of its recipe, its data, the number of threads, torch's build and the kind of CPU. The first
two must be the same, but for settings that say when to look or what to do on a bad number; the others are told of.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.errors import CheckpointMismatch
from puna.training.checkpoint import machine_record

__all__ = ["MAY_CHANGE", "check_data", "check_recipe", "check_record", "other_machine"]

MAY_CHANGE = tuple(
    f"training.{name}"
    for name in ("checkpoint_activations", "checkpoint_every", "keep_checkpoints", "on_bad_step", "validate_every")
)


def check_recipe(place: Path, before: str, now: str) -> bool:
    """Whether two recipes, as TOML, differ at all.

    Errors: CheckpointMismatch naming each setting that may not change, old and new.
    """
    old, new = _flat(tomllib.loads(before)), _flat(tomllib.loads(now))
    changed = [key for key in (old | new) if old.get(key) != new.get(key)]
    refused = [key for key in changed if key not in MAY_CHANGE]
    if refused:
        words = "; ".join(f"{key} was {_show(old, key)}, is {_show(new, key)}" for key in refused)
        raise CheckpointMismatch(
            f"{place}: another recipe: {words}", f"only {', '.join(MAY_CHANGE)} may change; or choose another --out"
        )
    return bool(changed)


def check_record(path: Path, record: Mapping[str, Any], recipe: str, data: Mapping[str, str]) -> None:
    """Compare what a checkpoint was saved under with what would go on from it.

    Args:   record: the checkpoint's manifest; recipe: as TOML; data: the digest of each source, by its name.
    Errors: CheckpointMismatch naming the setting or the source.
    """
    check_recipe(path, str(record.get("recipe", "")), recipe)
    check_data(path, record.get("data", {}), data)


def check_data(path: Path, saved: Mapping[str, str], data: Mapping[str, str]) -> None:
    """Errors: CheckpointMismatch naming the first source whose digest is another. Args: digests by the source's name."""
    for name in saved.keys() | data.keys():
        if saved.get(name) != data.get(name):
            raise CheckpointMismatch(
                f"{path}: saved from other data: {name} has changed since",
                "put the old data back, or choose another folder for the run",
            )


def other_machine(record: Mapping[str, Any]) -> str | None:
    """Why a run that goes on from a checkpoint will not be equal to the bit to an uninterrupted one; None: it will be."""
    now = machine_record()
    differences = [
        f"{name} {record[name]} then, {value} now" for name, value in now.items() if record.get(name, value) != value
    ]
    if not differences:
        return None
    return f"{'; '.join(differences)}: the run goes on, but not to the bit as it would have"


def _flat(table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Every value of nested tables under its dotted name; those of a list of tables under name[0], name[1] ..."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{path}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, entry in enumerate(value):
                found |= _flat(entry, f"{path}{name}[{index}].")
        else:
            found[f"{path}{name}"] = value
    return found


def _show(table: Mapping[str, Any], key: str) -> str:
    return repr(table[key]) if key in table else "not set"
