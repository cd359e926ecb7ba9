"""Documents from files: gathered in one order, exact duplicates dropped, split the same way every time.

A document is one text file, one line of a .jsonl or one row of a .parquet (reading.py). What gives no text is counted,
with its place, or skipped and said so: nothing is guessed and nothing disappears silently.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.errors import BadData, UsageError
from puna.text.reading import Entry, holds_lines, last_line_end, read_entries

__all__ = [
    "Corpus",
    "Document",
    "DocumentStream",
    "cut_documents",
    "documents_sha256",
    "read_documents",
    "split_documents",
]

SHOWN_PLACES = 5
MAX_BAD_SHARE = 0.01
JUDGED_LINES = 10_000  # after so many the share of bad ones says something
DIGEST_BYTES = 16  # two of 10**12 texts share one with a probability of 10**-15


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


class DocumentStream:
    """The texts below some paths, one document in memory at a time; iterating again begins anew.

    Files come as named, folders recursively in sorted order without hidden entries. Of each document a hash stays in
    memory, by which later ones equal to it are dropped.

    Attributes, each for what was read so far: documents, duplicates, lines (those of .jsonl and rows of .parquet that
    are not blank), bad_lines of them, bad_places ("file:line: why" of the first few), skipped ("file: why").
    """

    def __init__(
        self,
        paths: Sequence[Path],
        source: str = "text",
        *,
        exclude: Callable[[Path], bool] | None = None,
        is_strict: bool = False,
    ) -> None:
        """Args: exclude: files and folders below the paths to leave out. is_strict: more than 1 % bad lines are an error."""
        self._paths, self._source, self._exclude, self._is_strict = paths, source, exclude, is_strict
        self._forget()

    def __iter__(self) -> Iterator[Document]:
        """Read everything.

        Errors: BadData where a path does not exist, nothing readable was found, or too many lines are bad; MissingExtra.
        """
        self._forget()
        for path in self._files():
            yield from self._read(path)
        self._judge()
        if self.documents == 0:
            raise self._nothing()

    def fingerprint(self) -> str:
        """A hash of the path, the size and the time of change of every file. Errors: BadData for a path that is none."""
        digest = hashlib.sha256()
        for path in self._files():
            try:
                status = path.stat()
                digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
            except OSError:
                digest.update(f"{path}\0\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _forget(self) -> None:
        self.documents = self.duplicates = self.lines = self.bad_lines = 0
        self.bad_places: list[str] = []
        self.skipped: list[str] = []
        self._digests: set[bytes] = set()

    def _files(self) -> Iterator[Path]:
        for root in self._paths:
            if not root.exists():
                raise BadData(f"{root}: expected a text file or a folder of them, got nothing", "check the path")
        for root in self._paths:
            yield from _walk(root, self._exclude)

    def _read(self, path: Path) -> Iterator[Document]:
        before, are_lines = self.documents, holds_lines(path)
        try:
            if not path.is_file():
                raise ValueError("not a file that can be read")
            for entry in read_entries(path):
                self.lines += are_lines
                if entry.fault is not None:
                    self._note_fault(entry)
                elif self._is_new(entry.text):
                    self.documents += 1
                    yield Document(text=entry.text, source=self._source, name=entry.name)
        except (OSError, EOFError, ValueError) as error:
            rest = f"; {self.documents - before} documents before that were read" if self.documents > before else ""
            self.skipped.append(f"{path}: {error}{rest}")

    def _note_fault(self, entry: Entry) -> None:
        self.bad_lines += 1
        if len(self.bad_places) < SHOWN_PLACES:
            self.bad_places.append(f"{entry.name}: {entry.fault}")
        if self.lines >= JUDGED_LINES:
            self._judge()

    def _is_new(self, text: str) -> bool:
        digest = hashlib.sha256(text.encode()).digest()[:DIGEST_BYTES]
        if digest in self._digests:
            self.duplicates += 1
            return False
        self._digests.add(digest)
        return True

    def _judge(self) -> None:
        if self._is_strict and self.bad_lines > MAX_BAD_SHARE * self.lines:
            raise BadData(
                f"{self.bad_lines:,} of {self.lines:,} lines are bad, more than {MAX_BAD_SHARE:.0%};"
                f" the first is {self.bad_places[0]}",
                "mend the input, or leave bad lines out with --anyway",
            )

    def _nothing(self) -> BadData:
        reasons = [*self.skipped, *self.bad_places]
        return BadData(
            f"no readable text in {', '.join(map(str, self._paths)) or 'nothing'}"
            f" ({len(self.skipped)} files skipped, {self.bad_lines} bad lines)",
            f"expected UTF-8 text, or .jsonl or .parquet with a 'text'; the first was {reasons[0]}"
            if reasons
            else "name files or folders that hold UTF-8 text",
        )


def read_documents(
    paths: Sequence[Path], source: str = "text", *, exclude: Callable[[Path], bool] | None = None
) -> Corpus:
    """Read every text below `paths` into memory, as a DocumentStream gives them.

    Args:    exclude: files and folders below the given ones to leave out.
    Errors:  BadData where a path does not exist or nothing readable was found; MissingExtra.
    """
    stream = DocumentStream(paths, source, exclude=exclude)
    return Corpus(
        documents=tuple(stream),
        duplicates=stream.duplicates,
        skipped=tuple(stream.skipped),
        bad_lines=stream.bad_lines,
        bad_places=tuple(stream.bad_places),
    )


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


def documents_sha256(documents: Iterable[Document]) -> str:
    """A digest of the texts in their order, in hexadecimal: what was made of them belongs to them alone."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document.text.encode()).digest())
    return digest.hexdigest()


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
        high = start + target
        is_last = len(text) - start <= target * 3 // 2
        end = len(text) if is_last else last_line_end(text, start + target // 2, high) or high
        yield Document(text=text[start:end], source=document.source, name=f"{document.name}#{index}")
        start, index = end, index + 1


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
