"""Documents from files: gathered in one order, exact duplicates dropped, split the same way every time.

A document is one text file or one line of a .jsonl file ({"text": ...}); either may be gzipped. What is not UTF-8 text
is skipped and said so: nothing is guessed and nothing disappears silently.
"""

import codecs
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from puna.errors import BadData, UsageError

__all__ = ["Corpus", "Document", "cut_documents", "read_documents", "split_documents"]

MAX_RATIO = 1000  # deflate itself stops at 1032: only a bomb comes near
MAX_LINE_BYTES = 16 << 20
SHOWN_PLACES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One piece of text, the source it is counted under and where it came from."""

    text: str
    source: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What reading found: the documents, and everything that did not become one.

    skipped and bad_places hold "where: why"; bad_places only the first few of bad_lines.
    """

    documents: tuple[Document, ...]
    duplicates: int
    skipped: tuple[str, ...]
    bad_lines: int
    bad_places: tuple[str, ...]


def read_documents(
    paths: Sequence[Path], source: str = "text", *, exclude: Callable[[Path], bool] | None = None
) -> Corpus:
    """Read every text below `paths`: files as named, folders recursively in sorted order without hidden entries.

    Args:    exclude: files and folders below the given ones to leave out.
    Errors:  BadData where a path does not exist or nothing readable was found.
    """
    gathering = _Gathering(source)
    for root in paths:
        if not root.exists():
            raise BadData(f"{root}: expected a text file or a folder of them, got nothing", "check the path")
        for path in _walk(root, exclude):
            gathering.read(path)
    if not gathering.documents:
        reasons = [*gathering.skipped, *gathering.bad_places]
        raise BadData(
            f"no readable text in {', '.join(map(str, paths)) or 'nothing'}"
            f" ({len(gathering.skipped)} files skipped, {gathering.bad_lines} bad lines)",
            f"expected UTF-8 text or .jsonl with a 'text' key; the first was {reasons[0]}"
            if reasons
            else "name files or folders that hold UTF-8 text",
        )
    return gathering.corpus()


def split_documents(
    documents: Sequence[Document], held_out: float = 0.01, minimum: int = 10, seed: int = 0
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Split into (train, held out) by the hash of (seed, text), so that neither order nor names matter.

    Args:    held_out: share of the documents; at least `minimum` of them. Equal texts fall on the same side.
    Errors:  UsageError for a share outside [0, 1); BadData where fewer documents remain to train on than are held out.
    """
    if not 0 <= held_out < 1:
        raise UsageError(f"held_out: expected a share in [0, 1), got {held_out}", "0.01 holds out one document of 100")
    digests = [hashlib.sha256(f"{seed}:{document.text}".encode()).digest() for document in documents]
    ranked = sorted(set(digests))
    count = max(minimum, round(held_out * len(ranked)))
    if len(ranked) < 2 * minimum or len(ranked) <= count:
        raise BadData(
            f"too little text to split: {len(ranked)} documents cannot give {count} to hold out and enough to train on",
            f"add text: at least {2 * minimum} different documents are needed",
        )
    held = set(ranked[:count])
    sides = [(document, digest in held) for document, digest in zip(documents, digests, strict=True)]
    return tuple(d for d, is_held in sides if not is_held), tuple(d for d, is_held in sides if is_held)


def cut_documents(documents: Iterable[Document], target_bytes: int) -> tuple[Document, ...]:
    """Cut long documents into pieces of about `target_bytes`, at blank lines where possible, else at line ends.

    The pieces of a document joined are the document. A text without line ends is cut between two characters.
    """
    return tuple(piece for document in documents for piece in _cut(document, target_bytes))


def _cut(document: Document, target_bytes: int) -> Iterator[Document]:
    text = document.text
    size = len(text.encode())
    if size <= target_bytes * 3 // 2:
        yield document
        return
    target = max(1, target_bytes * len(text) // size)  # characters
    start = index = 0
    while start < len(text):
        end = (
            len(text) if len(text) - start <= target * 3 // 2 else _cut_place(text, start + target // 2, start + target)
        )
        yield Document(text=text[start:end], source=document.source, name=f"{document.name}#{index}")
        start, index = end, index + 1


def _cut_place(text: str, low: int, high: int) -> int:
    """The last good place in (low, high] to end a piece."""
    for mark in ("\n\n", "\n\r\n", "\n"):
        place = text.rfind(mark, low, high)
        if place >= 0:
            return place + len(mark)
    return high


@dataclass(slots=True)
class _Gathering:
    source: str
    documents: list[Document] = field(default_factory=list)
    digests: set[bytes] = field(default_factory=set)
    duplicates: int = 0
    skipped: list[str] = field(default_factory=list)
    bad_lines: int = 0
    bad_places: list[str] = field(default_factory=list)

    def read(self, path: Path) -> None:
        """Take in one file, or note why not."""
        try:
            if not path.is_file():
                raise ValueError("not a file that can be read")
            if path.name.removesuffix(".gz").endswith(".jsonl"):
                self._read_lines(path)
            else:
                self._add(_decode(b"".join(_pieces(path, lambda file: file.read(1 << 20)))), str(path))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            self.skipped.append(f"{path}: {error}")

    def corpus(self) -> Corpus:
        """What was gathered, frozen."""
        return Corpus(
            documents=tuple(self.documents),
            duplicates=self.duplicates,
            skipped=tuple(self.skipped),
            bad_lines=self.bad_lines,
            bad_places=tuple(self.bad_places),
        )

    def _add(self, text: str, name: str) -> None:
        digest = hashlib.sha256(text.encode()).digest()
        if digest in self.digests:
            self.duplicates += 1
        else:
            self.digests.add(digest)
            self.documents.append(Document(text=text, source=self.source, name=name))

    def _read_lines(self, path: Path) -> None:
        number, inside = 0, False
        for piece in _pieces(path, lambda file: file.readline(MAX_LINE_BYTES)):
            goes_on = len(piece) == MAX_LINE_BYTES and not piece.endswith(b"\n")
            if inside:
                inside = goes_on
                continue
            number, inside = number + 1, goes_on
            try:
                if goes_on:
                    raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
                line = piece.removeprefix(codecs.BOM_UTF8) if number == 1 else piece
                if line.strip():
                    self._add(_parse_line(line), f"{path}:{number}")
            except (ValueError, RecursionError) as error:
                self.bad_lines += 1
                if len(self.bad_places) < SHOWN_PLACES:
                    self.bad_places.append(f"{path}:{number}: {error}")


def _walk(path: Path, exclude: Callable[[Path], bool] | None) -> Iterator[Path]:
    try:
        children = sorted(path.iterdir()) if path.is_dir() else None
    except OSError:
        children = None  # reading it says why it is skipped
    if children is None:
        yield path
        return
    for child in children:
        is_linked_folder = child.is_symlink() and child.is_dir()  # may lead back up
        if not (child.name.startswith(".") or is_linked_folder or (exclude is not None and exclude(child))):
            yield from _walk(child, exclude)


def _pieces(path: Path, take: Callable[[BinaryIO], bytes]) -> Iterator[bytes]:
    """A file's bytes, unpacked, as `take` takes them. Errors: ValueError at a ratio only a bomb reaches."""
    limit = MAX_RATIO * path.stat().st_size
    with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
        while piece := take(file):
            if file.tell() > limit:
                raise ValueError(f"unpacks to more than {MAX_RATIO} times its size")
            yield piece


def _decode(data: bytes) -> str:
    if b"\0" in data:
        raise ValueError("binary (holds NUL bytes)")
    text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    if not text.strip():
        raise ValueError("empty")
    return text


def _parse_line(line: bytes) -> str:
    """The text of one JSON line. Errors: ValueError, RecursionError."""
    value = json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise ValueError("expected an object whose 'text' is a string")
    text.encode("utf-8")  # half a surrogate pair is no text
    if not text.strip():
        raise ValueError("empty text")
    return text


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
