"""`puna explain`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from puna.cli.console import print_json, print_table, print_words, say
from puna.cli.options import Json, Text
from puna.errors import UsageError
from puna.topics.words import TOPICS, Words, headings, topic_words

if TYPE_CHECKING:
    from puna.topics.explain import ExplainResult

__all__ = ["app"]

app = App(name="explain", usage="Usage: puna explain [OPTIONS] [TOPIC]")


@app.default
def explain(
    topic: str | None = None,
    /,
    *,
    model: str | None = None,
    text: Text | None = None,
    rank: int | None = None,
    lang: Literal["en", "zh"] = "en",
    out: Path | None = None,
    threads: int = 0,
    json: Json = False,
) -> None:
    """A formula alive: its symbols, the numbers of a real pass, the lecture notes' example, and what is right.

    Without TOPIC the topics are listed.

    Args:
        topic: which formula.
        model: a run, a model's folder or file, or a preset (of a large one shapes and counts only); without it the newest
            run under runs/, else tiny with random weights.
        text: what the model reads.
        rank: of the topics svd, pca, lora and memory.
        lang: English or Traditional Chinese.
        out: a folder for the pictures, as SVG.
        threads: CPU threads; 0 leaves torch's choice.
    """
    if topic is None:
        given = {"model": model, "text": text, "rank": rank, "out": out}
        _list_topics([*(name for name, value in given.items() if value is not None), *(["json"] if json else [])], lang)
        return
    words = topic_words(topic, lang)
    from puna.jobs.machine import use_threads
    from puna.topics.explain import explain as run

    use_threads(threads)
    result = run(topic, model=model, text=text, rank=rank, lang=lang, out=out)
    if json:
        print_json(result)
    else:
        _print_result(result, words, headings(lang))


def _list_topics(named: Sequence[str], lang: str) -> None:
    if named:
        raise UsageError(f"explain: expected a topic beside --{named[0]}, got none", "puna explain lists them")
    heads = headings(lang)
    rows = [(name, topic_words(name, lang).title) for name in TOPICS]
    print_table((heads["topic"], heads["about"]), rows, left=2)


def _print_result(result: "ExplainResult", words: Words, heads: Mapping[str, str]) -> None:
    for notice in result.notices:
        say(notice)
    print(result.title)
    print("".join(f"\n    {line}" for line in result.formula.splitlines()), end="\n\n")
    rows = [(symbol.sign, symbol.meaning, symbol.shape) for symbol in result.symbols]
    print_table((heads["symbol"], heads["meaning"], heads["shape"]), rows, left=3)
    for part, numbers in result.numbers.items():
        print()
        print_words(_heading(part, result, words, heads))
        _print_numbers(numbers, words, heads)
    print()
    print_words(f"{heads['right']}{result.right}")
    print_words(f"{heads['corrected']}{result.correction}")
    print(f"\n{heads['code']}{result.code}\n{heads['test']}{result.test}")
    for path in result.pictures:
        print(f"{heads['picture']}{path}")
    if words.pictures and not result.pictures:
        print(heads["pictures_hint"])


def _heading(part: str, result: "ExplainResult", words: Words, heads: Mapping[str, str]) -> str:
    if part != "model":
        return words.parts.get(part) or heads["example"]
    tokens = " ".join(f"[{piece}]" for piece in result.tokens)
    return heads["model"].format(name=result.subject, tokens=tokens)


def _print_numbers(numbers: Mapping[str, Any], words: Words, heads: Mapping[str, str]) -> None:
    """Single values in one table, then each table of numbers under its own name."""
    from puna.topics.topic import Grid

    single = {name: value for name, value in numbers.items() if not isinstance(value, Grid)}
    if single:
        print_table(
            (heads["number"], heads["value"]),
            [(words.numbers[name], _written(value)) for name, value in single.items()],
        )
    grids = {name: value for name, value in numbers.items() if isinstance(value, Grid)}
    for place, (name, grid) in enumerate(grids.items()):
        if single or place:
            print()
        rows = [(row, *map(_written, values)) for row, values in zip(grid.rows, grid.values, strict=True)]
        print_table((words.numbers[name], *grid.columns), rows)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:,.4f}".rstrip("0").rstrip(".")
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else ", ".join(map(_written, value))
