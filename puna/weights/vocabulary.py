"""The tokenizer that belongs to a checkpoint: files beside the weights, or the vocabulary inside a GGUF file. No torch."""

from pathlib import Path

from puna.errors import FormatError
from puna.tokens.gguf_vocabulary import tokenizer_from_gguf
from puna.tokens.tokenizer import Tokenizer, load_tokenizer
from puna.weights.checkpoint import CheckpointHeader
from puna.weights.gguf import read_gguf

__all__ = ["read_tokenizer", "tokenizer_of"]

_FILES = ("tokenizer.json", "tokenizer.model")
_NO_VOCABULARY = (None, "none", "no_vocab")


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer at a path: its folder, a tokenizer.json or tokenizer.model, or a GGUF file. Errors: FormatError."""
    if path.suffix != ".gguf":
        return load_tokenizer(path)
    return tokenizer_from_gguf(read_gguf(path).metadata, path)


def tokenizer_of(header: CheckpointHeader) -> Tokenizer | None:
    """A checkpoint's tokenizer; None where it has none.

    Errors: FormatError, also for more ids than the embedding has rows.
    """
    tokenizer = _tokenizer_of(header)
    rows = header.config.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > rows:
        raise FormatError(
            header.path, "tokenizer", f"at most {rows} ids, the embedding's rows", tokenizer.vocab_size,
            "the tokenizer belongs to another model, or ids were added to it alone",
        )  # fmt: skip
    return tokenizer


def _tokenizer_of(header: CheckpointHeader) -> Tokenizer | None:
    if header.format == "gguf":
        if header.metadata.get("tokenizer.ggml.model") in _NO_VOCABULARY:
            return None
        return tokenizer_from_gguf(header.metadata, header.path)
    if any((header.folder / name).is_file() for name in _FILES):
        return load_tokenizer(header.folder)
    return None
