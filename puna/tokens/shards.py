"""Ids on disk: one stream of little-endian uint16 or uint32, every document between BOS and EOS, read through a memory map.

A folder holds tokens.bin, document_ends.bin (int64: the ids up to and with each document's EOS), the sidecar shards.json,
the tokenizer and a manifest. A tokenizer without BOS leaves it out. docs/formats.md, section 7.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.errors import BadData, CheckpointMismatch, FormatError
from puna.files import read_json, resumable_folder, staged_folder, verify_folder, write_json
from puna.text.corpus import Document
from puna.tokens.shard_writer import ENDS, TOKENS, ShardWriter
from puna.tokens.tokenizer import Tokenizer

__all__ = ["Shards", "build_shards", "open_shards", "shards_at"]

SCHEMA = 1
SIDECAR, TOKENIZER = "shards.json", "tokenizer"
SYNC_BYTES = 32 << 20  # of text: a few seconds of encoding are lost to a kill
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
_TYPES = {
    **dict.fromkeys(("count", "documents", "bytes", "vocab_size", "eos_id"), int),
    **dict.fromkeys(("dtype", "tokenizer_sha256", "sha256"), str),
    "source": list,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """A stream of ids; `bytes` counts the UTF-8 bytes of the whole text, `sha256` is that of all its ids."""

    tokens: NDArray[Any]
    document_ends: NDArray[np.int64]
    vocab_size: int
    eos_id: int
    tokenizer_sha256: str
    sha256: str
    sources: tuple[str, ...]
    bytes: int

    def __len__(self) -> int:
        return len(self.tokens)

    def window(self, start: int, length: int) -> NDArray[np.int64]:
        """The ids [start, start + length), which the stream must hold."""
        return self.tokens[start : start + length].astype(np.int64)

    def split(self, held_out: int) -> tuple["Shards", "Shards"]:
        """All but the last `held_out` documents, and those. Errors: BadData where nothing would be left."""
        if not held_out < len(self.document_ends):
            raise BadData(
                f"{len(self.document_ends)} documents cannot give {held_out} to hold out and some to train on",
                "build shards of more documents, or name held-out ones of their own",
            )
        cut = int(self.document_ends[-held_out - 1])
        first = replace(self, tokens=self.tokens[:cut], document_ends=self.document_ends[:-held_out])
        return first, replace(self, tokens=self.tokens[cut:], document_ends=self.document_ends[-held_out:] - cut)


def build_shards(
    documents: Iterable[Document], tokenizer: Tokenizer, folder: Path, *, inputs: str | None = None
) -> Shards:
    """Encode documents one after the other into `folder`, which appears whole or not at all.

    Args:    inputs: a name of what `documents` is read from. With one, what is done stays in `<folder>.building` after a
             kill or an error, and a build of the same inputs with the same tokenizer goes on there: the documents that
             are done are read again, but not encoded, and the shards are the same to the byte.
    Errors:  BadData without documents, or where the tokenizer has nothing to end one with; DiskFull; RunLocked.
    """
    if not tokenizer.eos_ids:
        raise BadData("the tokenizer names no end of text to put between documents", "set eos_token in its config")
    if inputs is None:
        with staged_folder(folder) as staged:
            _fill(staged, documents, tokenizer)
    else:
        with resumable_folder(folder) as (staged, journal):
            _fill(staged, documents, tokenizer, journal, inputs)
    return open_shards(folder)


def shards_at(folder: Path, documents: Iterable[Document], tokenizer: Tokenizer) -> Shards:
    """The shards of a folder, or where none are there yet, or damaged ones, those of the documents. Errors: as build_shards."""
    try:
        return open_shards(folder)
    except FormatError:
        return build_shards(documents, tokenizer, folder)


def _fill(
    staged: Path, documents: Iterable[Document], tokenizer: Tokenizer, journal: Path | None = None, inputs: str = ""
) -> None:
    eos_id, has_bos = tokenizer.eos_ids[0], tokenizer.bos_id is not None
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    text_bytes, sources = 0, set()
    ids_mean = {"eos_id": eos_id, "vocab_size": tokenizer.vocab_size, "tokenizer_sha256": tokenizer.sha256}
    origin = {"schema": SCHEMA, "inputs": inputs, "bos_id": tokenizer.bos_id, **ids_mean}
    with ShardWriter(staged, DTYPES[dtype], journal, origin, SYNC_BYTES) as writer:
        for document in documents:
            ids = [] if writer.is_behind else [*tokenizer.encode(document.text, bos=has_bos), eos_id]
            text = document.text.encode()
            if ids:
                writer.add(text, ids)
            else:
                writer.pass_over(text)
            sources.add(document.source)
            text_bytes += len(text)
        sha256 = writer.finish()
    if writer.documents == 0:
        raise BadData("no documents to encode", "check that the paths hold text")
    sidecar = {
        "schema": SCHEMA,
        "dtype": dtype,
        "count": writer.tokens,
        **ids_mean,
        "sha256": sha256,
        "source": sorted(sources),
        "documents": writer.documents,
        "bytes": text_bytes,
    }
    write_json(staged / SIDECAR, sidecar)
    tokenizer.save(staged / TOKENIZER)


def open_shards(folder: Path) -> Shards:
    """Map shards into memory after checking every byte against its hash. Errors: FormatError."""
    if not (folder / SIDECAR).is_file():
        raise FormatError(folder, "file", f"token shards with {SIDECAR}", "none", "make them with puna tokens build")
    try:
        manifest = verify_folder(folder)
    except (CheckpointMismatch, TypeError, ValueError) as error:
        raise FormatError(folder, "files", "what was written", error, "build the shards again") from None
    sidecar = _read_sidecar(folder / SIDECAR)
    tokens_path, ends_path = folder / TOKENS, folder / ENDS
    if manifest["files"].get(TOKENS, (0, ""))[1] != sidecar["sha256"]:
        raise FormatError(tokens_path, "sha256", sidecar["sha256"], "another")
    dtype = np.dtype(DTYPES[sidecar["dtype"]])
    for path, expected in ((tokens_path, sidecar["count"] * dtype.itemsize), (ends_path, sidecar["documents"] * 8)):
        size = path.stat().st_size if path.is_file() else 0
        if size != expected or size == 0:
            raise FormatError(path, "size", f"{expected} bytes, at least one document", f"{size} bytes")
    tokens = np.memmap(tokens_path, dtype=dtype, mode="r")
    ends = np.fromfile(ends_path, dtype="<i8").astype(np.int64)
    if (
        ends[0] < 1
        or ends[-1] != len(tokens)
        or np.any(np.diff(ends) < 1)
        or np.any(tokens[ends - 1] != sidecar["eos_id"])
    ):
        raise FormatError(ends_path, "ends", "ascending places after an EOS, the last one the count", "others")
    if tokens.max() >= sidecar["vocab_size"]:
        raise FormatError(tokens_path, "ids", f"ids below {sidecar['vocab_size']}", tokens.max())
    return Shards(
        tokens=tokens,
        document_ends=ends,
        vocab_size=sidecar["vocab_size"],
        eos_id=sidecar["eos_id"],
        tokenizer_sha256=sidecar["tokenizer_sha256"],
        sha256=sidecar["sha256"],
        sources=tuple(sidecar["source"]),
        bytes=sidecar["bytes"],
    )


def _read_sidecar(path: Path) -> dict[str, Any]:
    sidecar = read_json(path)
    if not isinstance(sidecar, dict) or sidecar.get("schema") != SCHEMA:
        raise FormatError(path, "schema", str(SCHEMA), sidecar.get("schema") if isinstance(sidecar, dict) else sidecar)
    for key, kind in _TYPES.items():
        if type(sidecar.get(key)) is not kind:
            raise FormatError(path, key, f"a value of type {kind.__name__}", repr(sidecar.get(key)))
    if sidecar["dtype"] not in DTYPES:
        raise FormatError(path, "dtype", " or ".join(DTYPES), sidecar["dtype"])
    return sidecar
