"""A vocabulary as a tokenizer.json describes it: byte-level BPE (Llama 3, ours), or BPE over pieces (Llama 2).

The `tokenizers` library reads it; ordinary text of byte-level vocabularies goes through tiktoken, six to ten times as
fast, where that provably gives the same ids (see `_bulk_encoding`). Format: docs/formats.md 2; tokenizers 0.23.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import tiktoken
import tokenizers

from puna.errors import FormatError
from puna.tokens.byte_level import BYTE_CHARACTERS, LLAMA3_PATTERN, all_splits, name_of, split_of

__all__ = ["BLANK", "JsonEncoding", "Kind", "holds_long_blank"]

BLANK = "\u2581"  # SentencePiece's blank
Kind = Literal["byte_level", "pieces"]
LONGEST_BLANK = 100_000  # characters; tiktoken 0.14 passes 700,000 blanks in a row and panics at 1,000,000
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_DECODERS = {"ByteLevel": "byte_level", "Sequence": "pieces", "Metaspace": "pieces"}


class JsonEncoding:
    """What a tokenizer.json says.

    Attributes: names: of every id, as the file spells them. merges: in order, as names. split: None for neither pattern.
                added: tokens that stand as they are wherever they occur, and are not special.
                adds_bos: whether other programs put a special token before a text that they encode.
    """

    def __init__(self, json_text: str, path: object) -> None:
        """Errors: FormatError naming `path`: another model than BPE, ids with holes, a file that the library refuses."""
        self._path, self._json = path, json_text
        self._plain = _build(json_text, path)
        self._plain.encode_special_tokens = True
        spec = _read_back(self._plain, json_text, path)
        self.kind: Kind = _kind(spec, path)
        self.table = _byte_table(spec, path) if self.kind == "byte_level" else _piece_table(spec, path)
        added = spec["added_tokens"]
        self.specials: Mapping[str, int] = {token["content"]: token["id"] for token in added if token["special"]}
        self.added: Mapping[str, int] = {token["content"]: token["id"] for token in added if not token["special"]}
        self.adds_bos = _adds_special_first(spec)
        self.names = _names(spec)
        self.unknown: str | None = spec["model"]["unk_token"]
        self.merges = [(left, right) for left, right in spec["model"]["merges"]]
        self.is_prefixed = self.kind == "pieces" and _adds_a_blank(spec)
        self.split = split_of(spec)
        self._bulk = _bulk_encoding(spec, self.table) if self.split == "llama3" else None

    @property
    def is_ranked(self) -> bool:
        """Whether ids are the ranks that tiktoken would join by."""
        return self._bulk is not None

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text."""
        if self._bulk is not None and not holds_long_blank(text):
            return self._bulk.encode_ordinary(text)
        return self._encode(self._plain, text)

    def encode_special(self, text: str) -> list[int]:
        """The ids of a text in which the names of special tokens stand for their ids."""
        return self._encode(self._special_aware, text)

    def json_text(self) -> str:
        """The file as it was read."""
        return self._json

    def _encode(self, library: tokenizers.Tokenizer, text: str) -> list[int]:
        with _library_errors(self._path):
            ids: list[int] = library.encode(text, add_special_tokens=False).ids
            return ids

    @cached_property
    def _special_aware(self) -> tokenizers.Tokenizer:
        return _build(self._json, self._path)


def holds_long_blank(text: str) -> bool:
    """Whether 2 x LONGEST_BLANK blanks may stand in a row: such a run fills one of these slices."""
    return any(text[i : i + LONGEST_BLANK].isspace() for i in range(0, len(text) - LONGEST_BLANK + 1, LONGEST_BLANK))


def _build(json_text: str, path: object) -> tokenizers.Tokenizer:
    with _library_errors(path):
        built = tokenizers.Tokenizer.from_str(json_text)
        built.no_truncation()
        built.no_padding()
    return built


@contextmanager
def _library_errors(path: object) -> Iterator[None]:
    """FormatError for whatever the library says of this file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a hostile pattern raises pyo3's PanicException, which is no Exception
        raise FormatError(path, "file", "a tokenizer.json that tokenizers 0.23 can use", error) from error


def _read_back(built: tokenizers.Tokenizer, json_text: str, path: object) -> dict[str, Any]:
    """The file as the library understood it, every key present. Errors: FormatError where it changed an id."""
    spec: dict[str, Any] = json.loads(built.to_str())
    written = {token["content"]: token["id"] for token in json.loads(json_text).get("added_tokens", ())}
    for token in spec["added_tokens"]:
        if written[token["content"]] != token["id"]:
            raise FormatError(path, f"added_tokens {token['content']}", f"id {token['id']}", written[token["content"]])
    return spec


def _names(spec: dict[str, Any]) -> tuple[str, ...]:
    by_id = {index: name for name, index in spec["model"]["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in spec["added_tokens"]}
    return tuple(name for _, name in sorted(by_id.items()))


def _kind(spec: dict[str, Any], path: object) -> Kind:
    model, decoder = spec["model"].get("type"), (spec["decoder"] or {}).get("type")
    if model != "BPE":
        raise FormatError(path, "model.type", "BPE", model, "only the vocabularies of Llama models are read")
    if decoder not in _DECODERS:
        raise FormatError(path, "decoder.type", f"one of {', '.join(_DECODERS)}", decoder)
    return "byte_level" if decoder == "ByteLevel" else "pieces"


def _byte_table(spec: dict[str, Any], path: object) -> tuple[bytes, ...]:
    """The bytes of each id. Errors: FormatError: a byte that is no token, a name in other characters, holes."""
    vocab: dict[str, int] = spec["model"]["vocab"]
    missing = [byte for byte, name in enumerate(BYTE_CHARACTERS) if name not in vocab]
    if missing:
        raise FormatError(path, "model.vocab", "all 256 bytes", f"no byte {missing[0]}")
    bytes_of = {name: byte for byte, name in enumerate(BYTE_CHARACTERS)}

    def read(name: str) -> bytes:
        try:
            return bytes(bytes_of[character] for character in name)
        except KeyError:
            raise FormatError(path, "model.vocab", "names in byte characters", repr(name)) from None

    added = {token["content"] for token in spec["added_tokens"]}
    return _table(spec, {name: read(name) for name in vocab if name not in added}, path)


def _piece_table(spec: dict[str, Any], path: object) -> tuple[bytes, ...]:
    """The bytes of each id: byte pieces their byte, others their characters with blanks. Errors: FormatError."""
    vocab: dict[str, int] = spec["model"]["vocab"]
    if not spec["model"]["byte_fallback"]:
        raise FormatError(path, "model.byte_fallback", "true", "false", "only Llama 1's and 2's pieces are read")
    parts = {
        name: bytes.fromhex(match[1]) if (match := _BYTE_PIECE.fullmatch(name)) else name.replace(BLANK, " ").encode()
        for name in vocab
    }
    return _table(spec, parts, path)


def _table(spec: dict[str, Any], parts: Mapping[str, bytes], path: object) -> tuple[bytes, ...]:
    """Parts and added tokens by id, which must be 0 .. n - 1, each once."""
    vocab: dict[str, int] = spec["model"]["vocab"]
    added: dict[str, int] = {token["content"]: token["id"] for token in spec["added_tokens"]}
    table = {vocab[name]: part for name, part in parts.items()} | {
        index: name.encode() for name, index in added.items()
    }
    count = len(vocab.keys() | added.keys())
    if table.keys() != set(range(count)):
        raise FormatError(path, "model.vocab", f"the ids 0 to {count - 1}, each once", "holes or repeats")
    return tuple(table[index] for index in range(count))


def _adds_special_first(spec: dict[str, Any]) -> bool:
    steps = spec["post_processor"] or {}
    templates = [step.get("single") for step in steps.get("processors", [steps])]
    return any(template and "SpecialToken" in template[0] for template in templates)


def _adds_a_blank(spec: dict[str, Any]) -> bool:
    """Whether a text gets a leading blank: by a normaliser that prepends one, or by Metaspace."""
    normalizer = spec["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    prepends = any(step.get("type") == "Prepend" and step.get("prepend") == BLANK for step in steps)
    return prepends or (spec["pre_tokenizer"] or {}).get("prepend_scheme") in ("always", "first")


def _bulk_encoding(spec: dict[str, Any], table: tuple[bytes, ...]) -> tiktoken.Encoding | None:
    """tiktoken over the same vocabulary, or None where its ids could differ.

    tiktoken joins whatever neighbours make the lowest id; a tokenizer.json joins the pairs it lists, in order. They
    agree (a) when all splits of all tokens are listed by (id, left id, right id), as of Llama 3's, or (b) when ids 0-255
    are the bytes, merge i makes id 256 + i, and every token's own bytes merge to that token: the bytes of a token that
    stand together then always end as the pair of its merge, whatever stands around them.
    """
    model = spec["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    if any(model[option] is not None for option in options) or not all(t["special"] for t in spec["added_tokens"]):
        return None
    tokens = table[: len(vocab)]
    if vocab != {name_of(token): index for index, token in enumerate(tokens)}:
        return None
    if not (_lists_every_split(model, tokens, merges) or _merges_in_order(vocab, merges)):
        return None
    ranks = {token: index for index, token in enumerate(tokens)}
    return tiktoken.Encoding("byte-level", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})


def _lists_every_split(model: dict[str, Any], tokens: tuple[bytes, ...], merges: list[tuple[Any, ...]]) -> bool:
    return bool(model["ignore_merges"]) and len(merges) > len(tokens) - 256 and merges == all_splits(tokens)


def _merges_in_order(vocab: dict[str, int], merges: list[tuple[Any, ...]]) -> bool:
    names = [*BYTE_CHARACTERS, *("".join(pair) for pair in merges)]
    if vocab != {name: index for index, name in enumerate(names)}:
        return False
    by_merges = tokenizers.models.BPE(vocab=vocab, merges=merges)
    return all(len(by_merges.tokenize(name)) == 1 for name in names)
