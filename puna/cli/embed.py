"""`puna embed`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from puna.cli.console import print_json, print_table, say
from puna.cli.options import Json, MachineOptions
from puna.errors import UsageError
from puna.planning.settings import Base

if TYPE_CHECKING:
    from puna.jobs.embed import EmbedResult

__all__ = ["app"]

_SHOWN_CHARACTERS = 48
_SHOWN_NUMBERS = 4
_FILES = (".txt", ".md", ".jsonl", ".parquet", ".gz", ".zst")

app = App(name="embed")


@app.default
def embed(
    model: str,
    /,
    *,
    text: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")],
    pool: Literal["mean", "last"] = "mean",
    judge: bool = False,
    adapter: str | None = None,
    base: Base | None = None,
    json: Json = False,
    machine: MachineOptions = MachineOptions(),  # noqa: B008 - frozen
) -> None:
    """Texts as vectors of length 1: a model's states after the final norm, pooled; --json has all numbers.

    Args:
        model: a run, a Hugging Face or Meta folder, or a GGUF file.
        text: texts; or one file, of which each line that is not blank, or each record of a .jsonl or .parquet, is a text.
        pool: mean of a text's own ids, BOS not among them; or the last one's state.
        judge: embed adjacent sentences of the texts instead, and say how often such a pair is closer than a random one.
        adapter: a run folder or a PEFT folder.
        base: how the blocks' weights are held: int8 and nf4 are rounded tensor by tensor while loading.
    """
    from puna.jobs.embed import embed as run
    from puna.jobs.machine import choose_dtype, use_threads

    use_threads(machine.threads)
    result = run(
        model,
        _texts_or_file(text),
        pool=pool,
        judge=judge,
        adapter=adapter,
        base=base,
        device=machine.device,
        dtype=choose_dtype(machine.precision),
    )
    for notice in result.notices:
        say(notice)
    if json:
        print_json(result)
    elif result.pairs is None:
        _print_vectors(result)
    else:
        rows = [
            ("auc, adjacent against random pairs", f"{result.auc:.4f} ± {result.auc_standard_error:.4f}"),
            ("adjacent pairs of sentences", f"{result.pairs:,}"),
            ("numbers in a vector", f"{result.dim:,}"),
        ]
        print_table(("", model), rows)


def _texts_or_file(given: Sequence[str]) -> Sequence[str] | Path:
    """One argument that names a file is that file. Errors: UsageError: one that looks like a file and is none."""
    if len(given) != 1 or "\n" in given[0]:
        return given
    (only,) = given
    path = Path(only)
    if _is_there(path):
        return path
    if path.suffix in _FILES and " " not in only:
        raise UsageError(f"--text {only}: no such file", "check the path")
    return given


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a path can be, or no path at all
        return False


def _print_vectors(result: "EmbedResult") -> None:
    """A line a text: how it begins, and how its vector begins."""
    rows = []
    for text, vector in zip(result.texts, result.vectors, strict=True):
        line = " ".join(text.split())
        shown = line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"
        rows.append((shown, " ".join(f"{number:+.4f}" for number in vector[:_SHOWN_NUMBERS])))
    print_table(("text", f"the first of {result.dim:,} numbers"), rows)
