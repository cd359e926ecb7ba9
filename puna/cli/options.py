"""Flags that several verbs share."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from puna.errors import UsageError
from puna.jobs.quantities import parse_count

__all__ = ["Count", "Json", "Lang", "MachineOptions", "RecipeOptions", "RecordOptions", "Text", "resume_stands_alone"]


def _count(_type: Any, tokens: Sequence[Token]) -> int:
    try:
        return parse_count(tokens[0].value)
    except UsageError as error:
        raise ValueError(error.message) from None  # the parser adds the flag's name


Count = Annotated[int, Parameter(converter=_count)]
Text = Annotated[str, Parameter(allow_leading_hyphen=True)]
Json = Annotated[bool, Parameter(name="--json", help="print one JSON object on stdout and nothing else.")]

Lang = Annotated[Literal["en", "zh"], Parameter(help="the report's language; zh is Traditional Chinese.")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions:
    """Where and how a model runs.

    Args:
        device: cpu, cuda, cuda:1 ...; auto takes a CUDA device if there is one.
        threads: CPU threads; 0 leaves torch's choice.
        seed: the same seed gives the same result; 0 where nothing says otherwise.
        precision: training: auto takes what puna doctor measured to be faster; else auto is float32.
    """

    device: str = "auto"
    threads: int = 0
    seed: int | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOptions:
    """Settings from a file and from the command line.

    Args:
        recipe: a TOML recipe; flags and --set go over it.
        settings: section.field=value, a TOML value; repeatable.
    """

    recipe: Path | None = None
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = ()


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """What records are, and what of them is learned.

    Args:
        fields: the names of two fields of a line, the prompt's and the answer's: question,answer.
        loss: completion (the last answer, if nothing says otherwise), assistant (every answer), or all.
    """

    fields: str | None = None
    loss: Literal["completion", "assistant", "all"] | None = None


_WITH_RESUME = {"anyway", "out", "resume", "json", "lang", "device", "threads", "tensorboard", "settings"}


def resume_stands_alone(**given: object) -> None:
    """Refuse flags beside --resume: the run's recipe holds, and a flag is never ignored. --set is judged by the job.

    Args:   given: what the command line named; grouped options arrive whole.
    Errors: UsageError naming the first setting.
    """
    if not given.get("resume"):
        return
    for name, value in _named(given):
        if name not in _WITH_RESUME:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"--resume goes on with the settings of the run's recipe, got {flag} {value}",
                f"leave out {flag}; a few settings may change by --set, such as training.checkpoint_every",
            )


def _named(given: dict[str, object]) -> list[tuple[str, object]]:
    """Names and values, options of a group that differ from their default included."""
    flat: list[tuple[str, object]] = []
    for name, value in given.items():
        if isinstance(value, MachineOptions | RecipeOptions | RecordOptions):
            pairs = ((item.name, getattr(value, item.name), item.default) for item in fields(value))
            flat += [(each, found) for each, found, default in pairs if found != default]
        else:
            flat.append((name, value))
    return flat
