"""Records as a model would see them: what is learned in colour on a terminal, marked in words elsewhere."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from puna.cli.console import print_json, print_table

if TYPE_CHECKING:
    from puna.jobs.adapt_data import PreviewedRecord
    from puna.jobs.adapt_recipe import AdaptRecipe

__all__ = ["show_preview"]

_COLOURS = {True: "bold green", False: "dim"}  # of what is learned, of what is given


def show_preview(recipe: "AdaptRecipe", numbers: Sequence[int], *, anyway: bool, is_json: bool) -> int:
    """Print the first records and what the lint says, and return the exit code.

    Args:   numbers: how many records, or nothing for the usual.
    Errors: BadData, after all is printed, where a run would be refused; as JSON it is part of what is printed.
    """
    from puna.jobs import adapt_data as job

    count = numbers[0] if numbers else job.PREVIEWED
    preview, error = job.preview(
        recipe.base, recipe.data, recipe.records, seq=recipe.training.seq, count=count, anyway=anyway
    )
    if is_json:
        print_json(preview, error)
        return 0 if error is None else error.exit_code
    for record in preview.previewed:
        _print_record(record)
    print_table(("", str(recipe.base)), job.record_rows("en", preview.records))
    if error is not None:
        raise error
    return 0


def _print_record(record: "PreviewedRecord") -> None:
    learned = sum(span.tokens for span in record.spans if span.is_learned)
    head = f"{record.place}\t{record.kind}\t{sum(span.tokens for span in record.spans)} tokens, {learned} learned"
    if not sys.stdout.isatty():
        print(head)
        for span in record.spans:
            words = "learned" if span.is_learned else "given"
            print(f"{words}\t{span.tokens}\t{json.dumps(span.text, ensure_ascii=False)}")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(head.replace("\t", "  "), style="underline"))
    console.print(Text.assemble(*((_printable(span.text), _COLOURS[span.is_learned]) for span in record.spans)), "\n")


def _printable(text: str) -> str:
    """The text without what would steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
