"""Learn a tokenizer, use it, and turn documents into token shards."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.errors import UsageError
from puna.files import building_folder, staged_folder
from puna.jobs.run_folder import check_replaceable
from puna.text.corpus import DocumentStream, read_documents
from puna.tokens.learning import learn_tokenizer
from puna.tokens.shards import build_shards
from puna.weights.vocabulary import read_tokenizer

__all__ = ["BuildResult", "CodeResult", "LearnResult", "build", "decode", "encode", "learn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnResult:
    """What `puna tokens train --json` prints."""

    vocab_size: int
    tokens: int
    bytes_per_token: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeResult:
    """What `puna tokens encode --json` and `decode --json` print."""

    ids: list[int]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What `puna tokens build --json` prints; `skipped` says which files are no text, and why.

    lines: those of .jsonl and rows of .parquet; bad_places: the first few of bad_lines, "file:line: why".
    """

    documents: int
    duplicates: int
    tokens: int
    lines: int
    bad_lines: int
    bad_places: list[str]
    skipped: list[str]
    bytes_per_second: float


def learn(files: Sequence[Path], vocab_size: int, out: Path) -> LearnResult:
    """Learn a byte-level BPE from the files' text and save it in `out`. Errors: BadData, UsageError, DiskFull."""
    started = time.monotonic()
    check_replaceable(out)
    texts = [document.text for document in read_documents(files).documents]
    tokenizer = learn_tokenizer(texts, vocab_size)
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    with staged_folder(out) as folder:
        tokenizer.save(folder)
    text_bytes = sum(len(text.encode()) for text in texts)
    return LearnResult(
        vocab_size=tokenizer.vocab_size,
        tokens=tokens,
        bytes_per_token=text_bytes / tokens,
        seconds=time.monotonic() - started,
    )


def encode(text: str, tokenizer: Path, *, special: bool = False) -> CodeResult:
    """Text -> ids; with `special`, BOS is added and special tokens in the text are read as ids."""
    return CodeResult(ids=read_tokenizer(tokenizer).encode(text, bos=special, parse_special=special), text=text)


def decode(ids: Sequence[int], tokenizer: Path) -> CodeResult:
    """Ids -> text. Errors: UsageError for an id outside the vocabulary."""
    loaded = read_tokenizer(tokenizer)
    for token in ids:
        if not 0 <= token < loaded.vocab_size:
            raise UsageError(f"id {token}: expected 0 to {loaded.vocab_size - 1}", "is this the right --tokenizer?")
    return CodeResult(ids=list(ids), text=loaded.decode(ids))


def build(files: Sequence[Path], tokenizer: Path, out: Path, *, anyway: bool = False) -> BuildResult:
    """Documents -> token shards in `out`, the tokenizer beside them; after a kill the same call goes on where it was.

    Args:    anyway: build even where more than 1 % of the lines are bad; they are left out.
    Errors:  BadData, UsageError, DiskFull, RunLocked, MissingExtra.
    """
    started = time.monotonic()
    check_replaceable(out)
    ours = {out.absolute(), building_folder(out).absolute()}  # `out` may lie among the files
    stream = DocumentStream(files, exclude=lambda path: path.absolute() in ours, is_strict=not anyway)
    shards = build_shards(stream, read_tokenizer(tokenizer), out, inputs=stream.fingerprint())
    return BuildResult(
        documents=stream.documents,
        duplicates=stream.duplicates,
        tokens=len(shards),
        lines=stream.lines,
        bad_lines=stream.bad_lines,
        bad_places=stream.bad_places,
        skipped=stream.skipped,
        bytes_per_second=shards.bytes / (time.monotonic() - started),
    )
