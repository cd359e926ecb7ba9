"""Text to ids and back, through a byte-level BPE as a tokenizer.json describes it.

Every byte is a token, so every text has ids and decode(encode(s)) = s. Special ids never come from plain text.
Files: Hugging Face tokenizers 0.23; the pre-tokeniser's pattern is Llama 3's. Ordinary text goes through tiktoken, six
to ten times as fast, where it provably gives the same ids (see `_bulk_encoding`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tiktoken
import tokenizers

from puna.errors import BadData, FormatError
from puna.files import read_json, write_json, write_text

__all__ = ["BYTE_CHARACTERS", "LLAMA3_PATTERN", "Tokenizer", "load_tokenizer"]

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_NAMES = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")  # what ends a text, a tool call, a turn
LONGEST_BLANK = 100_000  # characters; tiktoken 0.14 passes 700,000 blanks in a row and panics at 1,000,000
PROBE = "".join(map(chr, range(256))) + "\u4e2d\u6587 \U0001f469\u200d\U0001f467 'tis 12345"


def _byte_characters() -> tuple[str, ...]:
    """The printable character that stands for each byte in a tokenizer.json (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_CHARACTERS = _byte_characters()
_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


class Tokenizer:
    """One class whatever file it was read from.

    Attributes: vocab_size: ids are 0 .. vocab_size - 1. bos_id: None where there is none. eos_ids: whatever ends a
                text or a turn, the configured one first. specials: name -> id. sha256: of the tokenizer.json.
    """

    def __init__(self, json_text: str, config: Mapping[str, Any], path: object = "tokenizer.json") -> None:
        """Take the contents of tokenizer.json and tokenizer_config.json. Errors: FormatError naming `path`."""
        self._path = path
        self._json = json_text
        self._config = dict(config)
        self._plain = _build(json_text, path)
        self._plain.encode_special_tokens = True
        spec = _read_back(self._plain, json_text, path)
        self._bytes = _byte_table(spec, path)
        self._bulk = _bulk_encoding(spec, self._bytes)
        self.vocab_size = len(self._bytes)
        self.specials: dict[str, int] = {token["content"]: token["id"] for token in spec["added_tokens"]}
        self.bos_id = self._named_id("bos_token", path)
        ends = [self._named_id("eos_token", path), *(self.specials.get(name) for name in END_NAMES)]
        self.eos_ids = tuple(dict.fromkeys(end for end in ends if end is not None))
        self.sha256 = hashlib.sha256(json_text.encode()).hexdigest()
        if self.decode(self.encode(PROBE)) != PROBE:
            raise FormatError(path, "pre_tokenizer", "ids that decode to the encoded text", "another text")

    def encode(self, text: str, bos: bool = False, parse_special: bool = False) -> list[int]:
        """The ids of a text.

        Args:    bos: put the BOS id first, where there is one. parse_special: read the names of special tokens in the
                 text as their ids; without it they are ordinary text.
        Errors:  BadData for half a surrogate pair, which is no character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadData(f"text: expected Unicode, got half a surrogate pair at {error.start}", "remove it") from None
        ids: list[int]
        if self._bulk is not None and not parse_special and not _holds_long_blank(text):
            ids = self._bulk.encode_ordinary(text)
        else:
            with _library_errors(self._path):
                ids = (self._special_aware if parse_special else self._plain).encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes behind ids; a special id gives its name. Errors: BadData for an id outside the vocabulary."""
        try:
            return b"".join([self._bytes[index] for index in ids])
        except KeyError as error:
            raise BadData(
                f"ids: expected 0 to {self.vocab_size - 1}, got {error}", "use the model's own tokenizer"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text behind ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json (as it was read), tokenizer_config.json and special_tokens_map.json."""
        write_text(folder / "tokenizer.json", self._json)
        write_json(folder / "tokenizer_config.json", self._config)
        names = {key: self._config[key] for key in ("bos_token", "eos_token") if self._config.get(key) is not None}
        write_json(folder / "special_tokens_map.json", names)

    @cached_property
    def _special_aware(self) -> tokenizers.Tokenizer:
        return _build(self._json, self._path)

    def _named_id(self, key: str, path: object) -> int | None:
        value = self._config.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        if name is None:
            return None
        index = self._plain.token_to_id(name) if isinstance(name, str) else None
        if index is None:
            raise FormatError(
                path, key, "the name of a token", repr(name), "the configuration names another vocabulary"
            )
        return int(index)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a folder that holds tokenizer.json (and tokenizer_config.json), or that file.

    Errors: FormatError for any other kind of tokenizer, and for a broken file.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    others = [file] if file == path else sorted(path.glob("tokenizer.model")) + sorted(path.glob("*.gguf"))
    if file.suffix != ".json" or not file.is_file():
        got = next((other.name for other in others if other.is_file()), "nothing")
        raise FormatError(
            path, "file", "tokenizer.json", got, "sentencepiece, tiktoken and gguf vocabularies are not read yet"
        )
    config_file = file.with_name("tokenizer_config.json")
    config = read_json(config_file) if config_file.is_file() else {}
    if not isinstance(config, dict):
        raise FormatError(config_file, "file", "a JSON object", type(config).__name__)
    try:
        json_text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(file, "file", "UTF-8", error) from None
    return Tokenizer(json_text, config, file)


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


def _byte_table(spec: dict[str, Any], path: object) -> dict[int, bytes]:
    """id -> bytes. Errors: FormatError for anything but a byte-level BPE whose ids are 0 .. n - 1."""
    for part, expected in (("model", "BPE"), ("decoder", "ByteLevel")):
        got = (spec[part] or {}).get("type")
        if got != expected:
            raise FormatError(path, f"{part}.type", expected, got, "only byte-level BPE (Llama 3's kind) is read yet")
    vocab: dict[str, int] = spec["model"]["vocab"]
    added: dict[str, int] = {token["content"]: token["id"] for token in spec["added_tokens"]}
    missing = [byte for byte, name in enumerate(BYTE_CHARACTERS) if name not in vocab]
    if missing:
        raise FormatError(path, "model.vocab", "all 256 bytes", f"no byte {missing[0]}")
    bytes_of = {name: byte for byte, name in enumerate(BYTE_CHARACTERS)}
    table = {index: name.encode() for name, index in added.items()}
    for name, index in vocab.items():
        if name not in added:
            try:
                table[index] = bytes(bytes_of[character] for character in name)
            except KeyError:
                raise FormatError(path, "model.vocab", "names in byte characters", repr(name)) from None
    count = len(vocab.keys() | added.keys())
    if table.keys() != set(range(count)):
        raise FormatError(path, "model.vocab", f"the ids 0 to {count - 1}, each once", "holes or repeats")
    return table


def _bulk_encoding(spec: dict[str, Any], table: dict[int, bytes]) -> tiktoken.Encoding | None:
    """tiktoken over the same vocabulary, or None where its ids could differ.

    tiktoken joins whatever neighbours make the lowest id; a tokenizer.json joins the pairs it lists, in order. They
    agree when ids 0-255 are the bytes, merge i makes id 256 + i, and every token's own bytes merge to that token: the
    bytes of a token that stand together then always end as the pair of its merge, whatever stands around them.
    """
    model = spec["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    options = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    is_plain = (
        spec["pre_tokenizer"] == _PRE_TOKENIZER
        and spec["normalizer"] is None
        and all(model[option] is None for option in options)
        and all(token["special"] for token in spec["added_tokens"])
    )
    names = [*BYTE_CHARACTERS, *("".join(pair) for pair in merges)]
    if not is_plain or vocab != {name: index for index, name in enumerate(names)}:
        return None
    by_merges = tokenizers.models.BPE(vocab=vocab, merges=merges)
    if any(len(by_merges.tokenize(name)) != 1 for name in names):
        return None
    ranks = {table[index]: index for index in vocab.values()}
    return tiktoken.Encoding("byte-level", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})


def _holds_long_blank(text: str) -> bool:
    """Whether 2 x LONGEST_BLANK blanks may stand in a row: such a run fills one of these slices."""
    return any(text[i : i + LONGEST_BLANK].isspace() for i in range(0, len(text) - LONGEST_BLANK + 1, LONGEST_BLANK))
