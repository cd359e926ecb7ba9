"""Ids to disk as they come: two files that only grow, and a journal of how much of them is sure to be there.

The journal (progress.json) holds what the shards depend on (a name of the inputs, the tokenizer), how many documents
and ids are on the disk, and hashes of those documents' texts and of both files so far. It is written after the files were
brought to the disk, so whatever it tells of is there after a kill; the rest is cut off on opening and written again.
Where a hash of the files is another, nothing of them is used.
"""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from puna.errors import BadData, FormatError
from puna.files import AppendedFile, read_json, remove_folder, write_json

__all__ = ["ENDS", "TOKENS", "ShardWriter"]

TOKENS, ENDS = "tokens.bin", "document_ends.bin"
_SHA256 = {TOKENS: "tokens_sha256", ENDS: "ends_sha256"}
_COUNTS = {"documents": int, "tokens": int, **dict.fromkeys(("texts_sha256", *_SHA256.values()), str)}


class ShardWriter:
    """Writes documents one after the other; the first ones may be on the disk already and are then only checked.

    Attributes: documents, tokens: how many were handed over, those already on the disk included.
    """

    def __init__(
        self, folder: Path, dtype: str, journal: Path | None, origin: Mapping[str, object], sync_bytes: int
    ) -> None:
        """Go on where the journal says if it is of the same `origin`, else begin anew, leaving nothing else in `folder`.

        Args: dtype: of an id. journal: None for a writer that cannot go on. sync_bytes: of text between two entries.
        """
        self._dtype, self._journal, self._origin, self._sync_bytes = dtype, journal, dict(origin), sync_bytes
        self._kept = _read_journal(folder, dtype, journal, self._origin)
        if journal is not None and not self._kept:
            remove_folder(journal)
        for path in folder.iterdir():
            if path.name not in _SHA256:
                remove_folder(path)
        lengths = _lengths(self._kept, dtype)
        self._tokens = _HashedFile(folder / TOKENS, lengths[TOKENS])
        self._ends = _HashedFile(folder / ENDS, lengths[ENDS])
        self._texts, self._unsynced = hashlib.sha256(), 0
        self.documents = self.tokens = 0

    def __enter__(self) -> "ShardWriter":
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both files."""
        self._tokens.close()
        self._ends.close()

    @property
    def is_behind(self) -> bool:
        """Whether the next document is on the disk already."""
        return self.documents < self._kept.get("documents", 0)

    def pass_over(self, text: bytes) -> None:
        """Count a document that is on the disk already. Errors: BadData where the last of them shows another text."""
        self._count(text)
        if not self.is_behind:
            self.tokens = self._kept["tokens"]
            self._unsynced = 0
            self._check_texts()

    def add(self, text: bytes, ids: Sequence[int]) -> None:
        """Write a document's ids."""
        self._count(text)
        self.tokens += len(ids)
        numbers = np.array(array("I", ids))  # three times as fast as an array of a list
        self._tokens.write(numbers.astype(self._dtype).tobytes())
        self._ends.write(np.array(self.tokens, dtype="<i8").tobytes())
        if self._journal is not None and self._unsynced >= self._sync_bytes:
            self._sync(self._journal)

    def finish(self) -> str:
        """Check that everything on the disk was handed over; the SHA-256 of all ids. Errors: BadData."""
        if self.is_behind:
            self._check_texts()
        return self._tokens.hash.hexdigest()

    def _count(self, text: bytes) -> None:
        self._texts.update(hashlib.sha256(text).digest())
        self._unsynced += len(text)
        self.documents += 1

    def _check_texts(self) -> None:
        if self._journal is not None and self._texts.hexdigest() != self._kept["texts_sha256"]:
            remove_folder(self._journal)  # the next try begins anew
            raise BadData("the texts are not those that the interrupted build read", "build again, from the beginning")

    def _sync(self, journal: Path) -> None:
        self._tokens.sync()
        self._ends.sync()
        counts = {
            "documents": self.documents,
            "tokens": self.tokens,
            "texts_sha256": self._texts.hexdigest(),
            _SHA256[TOKENS]: self._tokens.hash.hexdigest(),
            _SHA256[ENDS]: self._ends.hash.hexdigest(),
        }
        write_json(journal, {**self._origin, **counts})
        self._unsynced = 0


class _HashedFile(AppendedFile):
    """A file that only grows, and the hash of all of it."""

    def __init__(self, path: Path, length: int) -> None:
        self.hash = _hash_beginning(path, length)
        super().__init__(path, length)

    def write(self, data: bytes) -> None:
        self.hash.update(data)
        super().write(data)


def _read_journal(folder: Path, dtype: str, journal: Path | None, origin: Mapping[str, object]) -> dict[str, Any]:
    """The journal, or nothing where there is none to go on from."""
    try:
        kept = read_json(journal) if journal is not None else None
    except FormatError:
        return {}
    if not isinstance(kept, dict) or {key: kept.get(key) for key in origin} != origin:
        return {}
    if any(type(kept.get(key)) is not kind for key, kind in _COUNTS.items()):
        return {}
    lengths = _lengths(kept, dtype)
    is_whole = all(_hash_beginning(folder / name, lengths[name]).hexdigest() == kept[_SHA256[name]] for name in lengths)
    return kept if is_whole else {}


def _lengths(kept: Mapping[str, Any], dtype: str) -> dict[str, int]:
    """Bytes of each file that a journal tells of."""
    return {TOKENS: kept.get("tokens", 0) * np.dtype(dtype).itemsize, ENDS: kept.get("documents", 0) * 8}


def _hash_beginning(path: Path, length: int) -> "hashlib._Hash":
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while length > 0 and (block := file.read(min(length, 1 << 20))):
                digest.update(block)
                length -= len(block)
    return digest
