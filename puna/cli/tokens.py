"""`puna tokens train|encode|decode|build`."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from puna.cli.console import print_json, say
from puna.cli.options import Count, Json

__all__ = ["app"]

app = App(name="tokens")


@app.command
def train(*files: Path, vocab_size: Count, out: Path, json: Json = False) -> None:
    """Learn a byte-level BPE from files or folders.

    Parameters
    ----------
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
def encode(text: str, *, tokenizer: Path, special: bool = False, json: Json = False) -> None:
    """Text -> ids.

    Parameters
    ----------
    tokenizer: a tokenizer's or a model's folder.
    special: add BOS, and read special tokens in the text as ids.
    """
    from puna.jobs.tokens import encode as run

    result = run(text, tokenizer, special=special)
    if json:
        print_json(result)
    else:
        print(" ".join(map(str, result.ids)))


@app.command
def decode(*ids: int, tokenizer: Path, json: Json = False) -> None:
    """Ids -> text.

    Parameters
    ----------
    tokenizer: a tokenizer's or a model's folder.
    """
    from puna.jobs.tokens import decode as run

    result = run(ids, tokenizer)
    if json:
        print_json(result)
    else:
        print(result.text)


@app.command
def build(
    *files: Path,
    tokenizer: Annotated[Path, Parameter(help="a tokenizer's or a model's folder.")],
    out: Annotated[Path, Parameter(help="the folder of token shards.")],
    json: Json = False,
) -> None:
    """Documents -> token shards: text, source code, .jsonl with a text key, each also gzipped; folders recursively."""
    from puna.jobs.tokens import build as run

    result = run(files, tokenizer, out)
    if json:
        print_json(result)
        return
    print(f"{result.documents} documents, {result.tokens} tokens: {out}")
    if result.duplicates or result.bad_lines:
        say(f"{result.duplicates} duplicates dropped, {result.bad_lines} bad lines left out")
