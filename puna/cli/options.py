"""Flags that several verbs share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from puna.jobs.quantities import parse_count

__all__ = ["Count", "Json", "MachineOptions", "RecipeOptions"]


def _count(_type: Any, tokens: Sequence[Token]) -> int:
    return parse_count(tokens[0].value)


Count = Annotated[int, Parameter(converter=_count)]
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object on stdout and nothing else.")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions:
    """Where and how a model runs.

    Parameters
    ----------
    device: cpu, cuda, cuda:1 ...; auto takes a CUDA device if there is one.
    threads: CPU threads; 0 leaves torch's choice.
    seed: the same seed gives the same result.
    precision: auto takes what `puna doctor` measured to be faster.
    """

    device: str = "auto"
    threads: int = 0
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """Settings from a file and from the command line.

    Parameters
    ----------
    recipe: a TOML recipe; flags and --set go over it.
    settings: section.field=value, a TOML value; repeatable.
    """

    recipe: Path | None = None
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = ()
