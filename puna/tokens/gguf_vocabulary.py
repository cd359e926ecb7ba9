"""The vocabulary inside a GGUF file, as `tokenizer.ggml.*` keys, to and from the one Tokenizer.

`gpt2` with the pre-tokeniser `llama-bpe` is Llama 3's kind, with `gpt-2` that of tokenizer.json files without a pattern of
their own; `llama` with scores is SentencePiece's. Under `llama-bpe` llama.cpp takes a word that is a token whole, as
`ignore_merges` does. Any other model, or pre-tokeniser, is refused by name: ids would differ.
Format: docs/formats.md 6; oracle: llama.cpp.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from puna.errors import FormatError, UsageError
from puna.tokens.byte_level import BYTE_CHARACTERS, SplitName, byte_level_json, name_of
from puna.tokens.json_file import JsonEncoding
from puna.tokens.pieces import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece, PieceEncoding
from puna.tokens.ranks import RankEncoding
from puna.tokens.tokenizer import PLAIN_CONFIG, Encoding, Tokenizer

__all__ = ["gguf_metadata", "tokenizer_from_gguf"]

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_SPLITS: Mapping[str, SplitName] = {"llama-bpe": "llama3", "llama3": "llama3", "llama-v3": "llama3", "gpt-2": "gpt2"}
_BYTE_CHARACTERS = frozenset(BYTE_CHARACTERS)
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_ENDS = {"eot": "<|eot_id|>", "eom": "<|eom_id|>"}


def tokenizer_from_gguf(metadata: Mapping[str, Any], path: object) -> Tokenizer:
    """The tokenizer that a file's metadata describes. Errors: FormatError naming the key."""
    keys = _Keys(metadata, path)
    kind, tokens, types = keys.text("model"), keys.texts("tokens"), keys.numbers("token_type")
    types = types or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise FormatError(path, f"{_PREFIX}token_type", f"{len(tokens)} types", len(types))
    ids = {role: keys.index(key, len(tokens)) for key, role in _ROLES.items()}
    config = {**PLAIN_CONFIG, **{role: tokens[index] for role, index in ids.items() if index is not None}}
    used = next((count for count in range(len(types), 0, -1) if types[count - 1] != UNUSED), 0)
    tokens, types = tokens[:used], types[:used]  # behind them: rows of the embedding without a token
    encoding: Encoding
    if kind == "gpt2":
        adds_bos = keys.flag("add_bos_token", default=keys.text("pre") != "gpt-2")
        encoding = _byte_level(keys, tokens, types, config.get("bos_token") if adds_bos else None)
    elif kind == "llama":
        adds_bos = keys.flag("add_bos_token", default=True)
        encoding = _pieces(keys, tokens, types, config.get("bos_token") if adds_bos else None)
    else:
        hint = "only the vocabularies of Llama models are read"
        raise FormatError(path, f"{_PREFIX}model", "gpt2 or llama", kind, hint)
    template = metadata.get(_TEMPLATE)
    if template is not None and not isinstance(template, str):
        raise FormatError(path, _TEMPLATE, "a text", type(template).__name__)
    return Tokenizer(encoding, config, path, chat_template=template)


def gguf_metadata(tokenizer: Tokenizer, rows: int | None = None) -> dict[str, Any]:
    """The keys with which llama.cpp gives the same ids.

    Args:   rows: of the embedding; llama.cpp wants a token for each, so that the list is filled up with unused ones.
    Errors: UsageError: it has no word for this vocabulary.
    """
    encoding = tokenizer.encoding
    if encoding.kind == "pieces":
        pieces = encoding.pieces if isinstance(encoding, PieceEncoding) else _pieces_of_json(encoding)
        keys = {**_piece_keys(pieces), "add_space_prefix": encoding.is_prefixed}
    else:
        keys = _byte_level_keys(encoding)
    ids = {key: tokenizer.named_id(role) for key, role in _ROLES.items()}
    ids |= {key: tokenizer.specials.get(name) for key, name in _ENDS.items()}
    keys |= {f"{key}_token_id": index for key, index in ids.items() if index is not None}
    keys["add_bos_token"] = encoding.adds_bos
    unused = range(max(0, (rows or 0) - tokenizer.vocab_size))
    keys["tokens"] += [f"[PAD{number}]" for number in unused]
    keys["token_type"] += [UNUSED for _ in unused]
    if "scores" in keys:
        keys["scores"] += [0.0 for _ in unused]
    template = {} if tokenizer.chat_template is None else {_TEMPLATE: tokenizer.chat_template}
    return {f"{_PREFIX}{key}": value for key, value in keys.items()} | template


class _Keys:
    """The keys below tokenizer.ggml., each of the kind that it must be."""

    def __init__(self, metadata: Mapping[str, Any], path: object) -> None:
        self._metadata, self.path = metadata, path

    def text(self, key: str) -> str:
        """A required text."""
        value = self._metadata.get(_PREFIX + key)
        if not isinstance(value, str):
            raise self._refuse(key, "a text")
        return value

    def texts(self, key: str) -> list[str]:
        """A required list of texts."""
        value = self._metadata.get(_PREFIX + key)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self._refuse(key, "a list of texts")
        return value

    def numbers(self, key: str) -> list[Any]:
        """A list of numbers, empty where there is none."""
        value = self._metadata.get(_PREFIX + key, [])
        if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
            raise self._refuse(key, "a list of numbers")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        value = self._metadata.get(_PREFIX + key, default)
        if type(value) is not bool:
            raise self._refuse(key, "true or false")
        return value

    def index(self, key: str, count: int) -> int | None:
        """An id, or None."""
        value = self._metadata.get(f"{_PREFIX}{key}_token_id")
        if value is not None and (type(value) is not int or not 0 <= value < count):
            raise self._refuse(f"{key}_token_id", f"an id below {count}")
        return value

    def _refuse(self, key: str, expected: str) -> FormatError:
        got = self._metadata.get(_PREFIX + key)
        return FormatError(self.path, _PREFIX + key, expected, "nothing" if got is None else repr(got)[:80])


def _byte_level(keys: _Keys, tokens: list[str], types: list[int], bos: str | None) -> JsonEncoding:
    """Normal tokens are named in byte characters; all others are special."""
    pre = keys.text("pre")
    if pre not in _SPLITS:
        raise FormatError(keys.path, f"{_PREFIX}pre", " or ".join(_SPLITS), pre, "other patterns are not known here")
    if len(set(tokens)) != len(tokens):
        raise FormatError(keys.path, f"{_PREFIX}tokens", "each token once", "one twice")
    kinds = list(zip(tokens, types, strict=True))
    specials = {token: index for index, (token, kind) in enumerate(kinds) if kind not in (NORMAL, USER_DEFINED)}
    added = {token: index for index, (token, kind) in enumerate(kinds) if kind == USER_DEFINED}
    vocab = {token: index for index, (token, kind) in enumerate(kinds) if kind == NORMAL}
    strange = next((token for token in vocab if not set(token) <= _BYTE_CHARACTERS), None)
    if strange is not None:
        raise FormatError(keys.path, f"{_PREFIX}tokens", "names in byte characters", repr(strange)[:80])
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in keys.texts("merges"))]
    text = byte_level_json(vocab, merges, specials, bos if bos in specials else None, split=_SPLITS[pre], added=added)
    return JsonEncoding(text, keys.path)


def _pieces(keys: _Keys, tokens: list[str], types: list[int], bos: str | None) -> PieceEncoding:
    scores = keys.numbers("scores")
    if len(scores) < len(tokens):
        raise FormatError(keys.path, f"{_PREFIX}scores", f"{len(tokens)} scores", len(scores))
    pieces = [Piece(*each) for each in zip(tokens, scores, types, strict=False)]
    is_prefixed = keys.flag("add_space_prefix", default=True)
    return PieceEncoding(pieces, keys.path, is_prefixed=is_prefixed, bos=bos)


def _piece_keys(pieces: Sequence[Piece]) -> dict[str, Any]:
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [piece.text for piece in pieces],
        "scores": [float(piece.score) for piece in pieces],
        "token_type": [piece.type for piece in pieces],
    }


def _byte_level_keys(encoding: Encoding) -> dict[str, Any]:
    if isinstance(encoding, JsonEncoding) and encoding.split is not None:
        split, merges = encoding.split, encoding.merges
    elif isinstance(encoding, RankEncoding):
        split, merges = "llama3", encoding.merges()
    else:
        raise UsageError(
            "GGUF cannot say how this tokenizer splits a text", "only Llama 3's and GPT-2's patterns can be written"
        )
    special = {index: name for name, index in encoding.specials.items()}
    added = {index: name for name, index in encoding.added.items()}
    kinds = {**dict.fromkeys(special, CONTROL), **dict.fromkeys(added, USER_DEFINED)}
    return {
        "model": "gpt2",
        "pre": {"llama3": "llama-bpe", "gpt2": "gpt-2"}[split],
        "tokens": [(special | added).get(index) or name_of(part) for index, part in enumerate(encoding.table)],
        "token_type": [kinds.get(index, NORMAL) for index in range(len(encoding.table))],
        "merges": [f"{left} {right}" for left, right in merges],
    }


def _pieces_of_json(encoding: Encoding) -> list[Piece]:
    """The pieces of Llama 2's tokenizer.json; its merges stand in the order of their scores, which follow from it."""
    if not isinstance(encoding, JsonEncoding):
        raise UsageError("GGUF cannot say this vocabulary", "name the tokenizer.model that it came from")
    score: dict[str, float] = {}
    for left, right in encoding.merges:
        score.setdefault(left + right, -float(len(score)))
    specials, last = set(encoding.specials.values()), -float(len(score))
    if encoding.added:
        raise UsageError(
            f"GGUF cannot say the added token {next(iter(encoding.added))!r} beside pieces", "convert to hf instead"
        )
    pieces = []
    for index, name in enumerate(encoding.names):
        is_byte = len(name) == 6 and name.startswith("<0x") and index not in specials
        kind = UNKNOWN if name == encoding.unknown else CONTROL if index in specials else BYTE if is_byte else NORMAL
        pieces.append(Piece(name, score.get(name, last) if kind == NORMAL else 0.0, kind))
    return pieces
