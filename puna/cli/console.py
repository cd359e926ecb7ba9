"""What a person or a program reads: tables and progress on a terminal, plain lines in a pipe, one object with --json."""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from puna.errors import PunaError
from puna.report.numbers import human_bytes

__all__ = ["fits_row", "print_json", "print_table", "print_words", "progress_line", "say"]

_PLAIN_EVERY_SECONDS = 5.0


def print_json(result: object, error: PunaError | None = None) -> None:
    """One JSON object on stdout: exactly the fields of the result, and `error` where a check answered no."""
    fields = _finite(dataclasses.asdict(result))  # type: ignore[call-overload]
    whole = fields if error is None else {**fields, "error": error.facts()}
    print(json.dumps(whole, ensure_ascii=False, default=_plain, allow_nan=False))


def _finite(value: Any) -> Any:
    """NaN and infinities are no JSON: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_words(text: str) -> None:
    """A paragraph, broken at words to a terminal's width; one line elsewhere."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console

    Console(highlight=False, markup=False, emoji=False).print(text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, left: int = 1) -> None:
    """A table on a terminal, tab-separated lines elsewhere. Args: left: so many columns are left-aligned, the others right."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(highlight=False).print(table)


def fits_row(planned_bytes: int, available_bytes: int) -> tuple[str, str]:
    """A plan's peak, and whether it fits what is free now."""
    fits = "fits" if planned_bytes <= available_bytes else "does not fit"
    return "peak memory", f"{human_bytes(planned_bytes)}, {fits} the {human_bytes(available_bytes)} free"


def say(line: str) -> None:
    """One line of progress or log, on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_line(title: str) -> Iterator[Callable[[float, str], None]]:
    """Within the block, call `update(share, words)`: a bar with time left on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        with _bar(title) as update:
            yield update
        return
    last = time.monotonic()

    def update_plainly(share: float, words: str) -> None:
        nonlocal last
        if share >= 1 or time.monotonic() - last >= _PLAIN_EVERY_SECONDS:
            last = time.monotonic()
            say(f"{title}: {share:4.0%} {words}")

    yield update_plainly


@contextmanager
def _bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar for each sweep from 0 to 1; it goes when the block ends."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),  # what the words leave
        TextColumn("{task.fields[words]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as progress:
        task = None

        def update(share: float, words: str) -> None:
            nonlocal task
            if task is None:
                task = progress.add_task(title, total=1.0, words=words)
            progress.update(task, completed=share, words=words)
            if share >= 1:
                progress.remove_task(task)
                task = None

        yield update


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
