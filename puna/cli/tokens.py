"""`puna tokens train|encode|decode|build`."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from puna.cli.console import print_json, say
from puna.cli.options import Count, Json, Text

__all__ = ["app"]

app = App(name="tokens", help="Learn a tokenizer; encode, decode; build token shards.")

Files = Annotated[Path, Parameter(required=True)]


@app.command(usage="Usage: puna tokens train FILE... --vocab-size N --out DIR")
def train(*files: Files, vocab_size: Count, out: Path, json: Json = False) -> None:
    """Learn a byte-level BPE from files or folders.

    Args:
        files: text to learn from.
        vocab_size: tokens in all, the 256 bytes and the special tokens included.
        out: the tokenizer's folder.
    """
    from puna.jobs.tokens import learn

    result = learn(files, vocab_size, out)
    if json:
        print_json(result)
    else:
        print(f"{result.vocab_size} tokens, {result.bytes_per_token:.2f} bytes each, in {result.seconds:.1f} s: {out}")


@app.command
def encode(text: Text, /, *, tokenizer: Path, special: bool = False, json: Json = False) -> None:
    """Text -> ids.

    Args:
        text: what to encode.
        tokenizer: a tokenizer's or a model's folder.
        special: add BOS, and read special tokens in the text as ids.
    """
    from puna.jobs.tokens import encode as run

    result = run(text, tokenizer, special=special)
    if json:
        print_json(result)
    else:
        print(" ".join(map(str, result.ids)))


@app.command(usage="Usage: puna tokens decode ID... --tokenizer PATH")
def decode(*ids: int, tokenizer: Path, json: Json = False) -> None:
    """Ids -> text.

    Args:
        ids: of the tokens.
        tokenizer: a tokenizer's or a model's folder.
    """
    from puna.jobs.tokens import decode as run

    result = run(ids, tokenizer)
    if json:
        print_json(result)
    else:
        print(result.text)


@app.command(usage="Usage: puna tokens build FILE... --tokenizer PATH --out DIR")
def build(*files: Files, tokenizer: Path, out: Path, anyway: bool = False, json: Json = False) -> None:
    """Documents -> token shards, ready for puna train --data. After a kill the same command goes on where it was.

    Args:
        files: text, source code, .jsonl with a text key, .parquet with a text column; also .gz, .zst; folders recursively.
        tokenizer: a tokenizer's or a model's folder.
        out: the folder of token shards.
        anyway: build even where more than 1 % of the lines are bad.
    """
    from puna.jobs.tokens import build as run

    result = run(files, tokenizer, out, anyway=anyway)
    if json:
        print_json(result)
        return
    print(f"{result.documents} documents, {result.tokens} tokens: {out}")
    if result.duplicates or result.bad_lines:
        say(f"{result.duplicates} duplicates dropped, {result.bad_lines} bad lines left out")
    for place in result.bad_places:
        say(f"bad line {place}")
    for line in result.skipped:
        say(f"skipped {line}")
