"""Text to ids and back: one class, whatever file the vocabulary was read from.

    tokenizer.json   byte-level BPE (Llama 3, ours) or pieces with byte fallback (Llama 2)      json_file.py
    tokenizer.model  ranks (Llama 3) or SentencePiece (Llama 1, 2), told by their contents      ranks.py, sentencepiece_file.py
    GGUF metadata    either of both                                                            gguf_vocabulary.py

Every byte has a token, so every text has ids and decode(encode(s)) = s. Special ids never come from plain text.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from puna.errors import BadData, FormatError, UsageError
from puna.files import read_json, write_bytes, write_json, write_text
from puna.tokens.json_file import JsonEncoding
from puna.tokens.pieces import PieceEncoding
from puna.tokens.ranks import RankEncoding, parse_ranks, rank_lines
from puna.tokens.sentencepiece_file import parse_sentencepiece
from puna.tokens.special_names import BOS, END_NAMES, EOS, SPECIALS, llama3_names

__all__ = ["PLAIN_CONFIG", "Encoding", "Tokenizer", "load_tokenizer", "tokenizer_from_json"]

Encoding = JsonEncoding | RankEncoding | PieceEncoding
JSON_FILE, MODEL_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
PLAIN_CONFIG: Mapping[str, Any] = {  # of a tokenizer_config.json that we write
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": int(1e30),  # transformers' own word for no limit
    "clean_up_tokenization_spaces": False,
}
PROBE = "".join(map(chr, range(256))) + "\u4e2d\u6587 \U0001f469\u200d\U0001f467 'tis 12345"
_LONGEST_TEMPLATE = 64 << 10  # bytes
_LONGEST_MODEL = 64 << 20  # bytes
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """One class whatever file it was read from.

    Attributes: encoding: the vocabulary. vocab_size: ids are 0 .. vocab_size - 1. bos_id: None where there is none.
                eos_ids: whatever ends a text or a turn, the configured one first. specials: name -> id.
                chat_template: the model's own, None where it has none.
    """

    def __init__(
        self,
        encoding: Encoding,
        config: Mapping[str, Any],
        path: object,
        *,
        chat_template: str | None = None,
        model_file: bytes | None = None,
    ) -> None:
        """Args: config: as in a tokenizer_config.json. model_file: the tokenizer.model that the vocabulary came with.

        Errors: FormatError naming `path`.
        """
        self.encoding = encoding
        self._path, self._model_file = path, model_file
        self._config = {key: value for key, value in config.items() if key != "chat_template"}
        self.vocab_size = len(encoding.table)
        self.specials = dict(encoding.specials)
        self.bos_id = self.named_id("bos_token")
        ends = [self.named_id("eos_token"), *(self.specials.get(name) for name in END_NAMES)]
        self.eos_ids = tuple(dict.fromkeys(end for end in ends if end is not None))
        self.chat_template = chat_template
        if chat_template is not None and len(chat_template.encode(errors="replace")) > _LONGEST_TEMPLATE:
            raise FormatError(path, "chat_template", f"at most {_LONGEST_TEMPLATE:,} bytes", f"{len(chat_template):,}")
        if self.decode(self.encode(PROBE)) != PROBE:
            raise FormatError(path, "pre_tokenizer", "ids that decode to the encoded text", "another text")

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the vocabulary as a tokenizer.json: the same however often it was written and read."""
        return hashlib.sha256(self.encoding.json_text().encode()).hexdigest()

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
        ids = self.encoding.encode_special(text) if parse_special else self.encoding.encode(text)
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes behind ids; a special id gives its name. Errors: BadData for an id outside the vocabulary."""
        table = self.encoding.table
        try:
            return b"".join([table[self._checked(index)] for index in ids])
        except IndexError as error:
            raise BadData(
                f"ids: expected 0 to {self.vocab_size - 1}, got {error}", "use the model's own tokenizer"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text behind ids; bytes that are no UTF-8 become U+FFFD, and a blank that encoding put first goes."""
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.encoding.is_prefixed else text

    def named_id(self, role: str) -> int | None:
        """The id that the configuration gives a role such as `bos_token`; None for none. Errors: FormatError."""
        value = self._config.get(role)
        name = value.get("content") if isinstance(value, dict) else value
        if name is None:
            return None
        if not isinstance(name, str) or name not in self._ids_by_name:
            raise FormatError(
                self._path, role, "the name of a token", repr(name), "the configuration names another vocabulary"
            )
        return self._ids_by_name[name]

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json, the chat template, and tokenizer.model."""
        template = {} if self.chat_template is None else {"chat_template": self.chat_template}
        if isinstance(self.encoding, PieceEncoding) and self.encoding.has_user_defined:
            if self._model_file is None:
                raise UsageError("a tokenizer.json cannot say pieces that users defined", "convert to gguf")
        else:
            write_text(folder / JSON_FILE, self.encoding.json_text())
        write_json(folder / CONFIG_FILE, {**self._config, **template})
        names = {role: self._config[role] for role in _ROLES if self._config.get(role) is not None}
        write_json(folder / "special_tokens_map.json", names)
        if self.chat_template is not None:
            write_text(folder / TEMPLATE_FILE, self.chat_template)
        if self._model_file is not None:
            write_bytes(folder / MODEL_FILE, self._model_file)

    def save_model_file(self, path: Path, *, is_31: bool = False) -> None:
        """Write a tokenizer.model, as Meta's folders have it. Args: is_31: the folder's model is a Llama 3.1 or later.

        Errors: UsageError: the vocabulary is of no such kind, or what is read back would be another one.
        """
        data = self._rank_lines() if self._model_file is None else self._model_file
        if data[:1] == b"\x0a":
            again: Encoding = _from_sentencepiece(data, path, {}, None).encoding
        else:
            tokens = parse_ranks(data, path)
            again = RankEncoding(tokens, _names_after(tokens, self.vocab_size, is_31=is_31), path)
        if (again.table, again.specials) != (self.encoding.table, self.specials):
            raise UsageError(
                "a tokenizer.model cannot say all tokens of this tokenizer: some were added, or special ones renamed",
                "convert to hf or gguf",
            )
        write_bytes(path, data)

    def _rank_lines(self) -> bytes:
        specials = range(self.vocab_size - len(self.specials), self.vocab_size)
        is_ranked = isinstance(self.encoding, RankEncoding) or (
            isinstance(self.encoding, JsonEncoding) and self.encoding.is_ranked
        )
        if not is_ranked or sorted(self.specials.values()) != list(specials):
            raise UsageError(
                "this tokenizer cannot be written as a tokenizer.model",
                "put the tokenizer.model that it came from beside tokenizer.json, or convert to hf or gguf",
            )
        return rank_lines(self.encoding.table[: specials.start])

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.vocab_size:
            raise IndexError(index)
        return index

    @cached_property
    def _ids_by_name(self) -> dict[str, int]:
        """The ids that a configuration may name: special tokens, and any other by its text."""
        others = {part.decode(errors="replace"): index for index, part in enumerate(self.encoding.table)}
        return others | self.specials


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a folder's tokenizer.json, else its tokenizer.model, or one of these files.

    Errors: FormatError for any other kind of tokenizer, and for a broken file.
    """
    files = [path / JSON_FILE, path / MODEL_FILE] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None or file.suffix not in (".json", ".model"):
        got = "nothing" if file is None else file.name
        raise FormatError(
            path, "file", "tokenizer.json or tokenizer.model", got, "name a tokenizer's or a model's folder"
        )
    if file.suffix == ".json":
        config, template, model_file = _beside(file)
        return tokenizer_from_json(_text(file), config, file, chat_template=template, model_file=model_file)
    data = _bounded(file)
    config, template, _ = _beside(file)
    is_sentencepiece = data[:1] == b"\x0a"  # the tag of a protobuf's first piece; base64 never begins with a line's end
    read = _from_sentencepiece if is_sentencepiece else _from_ranks
    return read(data, file, config, template)


def tokenizer_from_json(
    json_text: str,
    config: Mapping[str, Any],
    path: object = "tokenizer.json",
    *,
    chat_template: str | None = None,
    model_file: bytes | None = None,
) -> Tokenizer:
    """Take the contents of tokenizer.json and of what stands beside it. Errors: FormatError naming `path`."""
    encoding = JsonEncoding(json_text, path)
    return Tokenizer(encoding, config, path, chat_template=chat_template, model_file=model_file)


def _beside(file: Path) -> tuple[dict[str, Any], str | None, bytes | None]:
    """The configuration, the chat template and the tokenizer.model beside a tokenizer.json."""
    config_file, template_file, model_file = (file.with_name(name) for name in (CONFIG_FILE, TEMPLATE_FILE, MODEL_FILE))
    config = read_json(config_file) if config_file.is_file() else {}
    if not isinstance(config, dict):
        raise FormatError(config_file, "file", "a JSON object", type(config).__name__)
    template = _template(config.get("chat_template"), config_file)
    if template_file.is_file():
        template = _text(template_file)
    return config, template, _bounded(model_file) if model_file.is_file() else None


def _template(value: object, path: Path) -> str | None:
    """chat_template: a text, or a list of {name, template} of which the one named default is meant."""
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, dict) and isinstance(item.get("name"), str)]
        by_name = {item["name"]: item.get("template") for item in named}
        value = by_name.get("default", next(iter(by_name.values()), None))
    if value is not None and not isinstance(value, str):
        raise FormatError(path, "chat_template", "a text, or a list of {name, template}", type(value).__name__)
    return value


def _from_sentencepiece(data: bytes, file: Path, beside: Mapping[str, Any], template: str | None) -> Tokenizer:
    model = parse_sentencepiece(data, file)
    roles = {"bos_token": model.bos_id, "eos_token": model.eos_id, "pad_token": model.pad_id}
    names = {role: model.pieces[index].text for role, index in roles.items() if index is not None}
    encoding = PieceEncoding(model.pieces, file, is_prefixed=model.is_prefixed, bos=names.get("bos_token"))
    config = {**PLAIN_CONFIG, **names, "unk_token": encoding.unknown, **beside}
    return Tokenizer(encoding, config, file, chat_template=template, model_file=data)


def _from_ranks(data: bytes, file: Path, beside: Mapping[str, Any], template: str | None) -> Tokenizer:
    """Meta's params.json beside the file says how many special tokens follow, and by their generation which."""
    tokens = parse_ranks(data, file)
    params_file = file.with_name("params.json")
    params = read_json(params_file) if params_file.is_file() else {}
    params = params if isinstance(params, dict) else {}
    names = _names_after(tokens, params.get("vocab_size"), is_31=params.get("use_scaled_rope") is True)
    config = {**PLAIN_CONFIG, "bos_token": BOS, "eos_token": EOS, **beside}
    return Tokenizer(RankEncoding(tokens, names, file), config, file, chat_template=template)


def _names_after(tokens: Sequence[bytes], size: object, *, is_31: bool) -> tuple[str, ...]:
    """The special tokens behind the ranks: ours where a vocabulary of this size has room for no more, else Llama 3's."""
    is_ours = type(size) is int and size == len(tokens) + len(SPECIALS)
    return SPECIALS if is_ours else llama3_names(is_31=is_31)


def _text(file: Path) -> str:
    try:
        return _bounded(file).decode()
    except UnicodeDecodeError as error:
        raise FormatError(file, "file", "UTF-8", error) from None


def _bounded(file: Path) -> bytes:
    size = file.stat().st_size
    if size > _LONGEST_MODEL:
        raise FormatError(file, "file", f"at most {_LONGEST_MODEL:,} bytes", f"{size:,}")
    return file.read_bytes()
