"""Llama 3's tokenizer.model: a line for each token, `base64(bytes) SPACE rank`; special tokens follow the ranks.

tiktoken encodes it as it stands; a tokenizer.json is built only where one is written.
Format: docs/formats.md 4; source: the public llama-models code, tiktoken 0.14.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import tiktoken

from puna.errors import FormatError
from puna.tokens.byte_level import LLAMA3_PATTERN, all_splits, byte_level_json, name_of
from puna.tokens.json_file import JsonEncoding, holds_long_blank
from puna.tokens.special_names import BOS

__all__ = ["RankEncoding", "parse_ranks", "rank_lines"]

_MOST_TOKENS, _LONGEST_TOKEN = 1 << 20, 1 << 10


class RankEncoding:
    """Byte-level BPE by ranks: neighbours that join to the token of the lowest rank are joined first."""

    kind: Literal["byte_level"] = "byte_level"
    is_prefixed = False
    adds_bos = True
    added: Mapping[str, int] = MappingProxyType({})

    def __init__(self, tokens: Sequence[bytes], names: Sequence[str], path: object) -> None:
        """Args: tokens: in the order of their ranks. names: of the special tokens that follow."""
        self._path, self._tokens = path, tokens
        self.specials: Mapping[str, int] = {name: len(tokens) + index for index, name in enumerate(names)}
        self.table = (*tokens, *(name.encode() for name in names))
        ranks = {token: rank for rank, token in enumerate(tokens)}
        self._plain = tiktoken.Encoding(
            "ranks", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=dict(self.specials)
        )

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text."""
        return self._slow.encode(text) if holds_long_blank(text) else self._plain.encode_ordinary(text)

    def encode_special(self, text: str) -> list[int]:
        """The ids of a text in which the names of special tokens stand for their ids."""
        if holds_long_blank(text):
            return self._slow.encode_special(text)
        return self._plain.encode(text, allowed_special="all")

    def merges(self) -> list[tuple[str, str]]:
        """Every split of every token, in order."""
        return all_splits(self._tokens)

    def json_text(self) -> str:
        """The vocabulary as a tokenizer.json that gives the same ids."""
        return self._json

    @cached_property
    def _json(self) -> str:
        bos = BOS if BOS in self.specials else None
        vocab = {name_of(token): rank for rank, token in enumerate(self._tokens)}
        return byte_level_json(vocab, self.merges(), self.specials, bos)

    @cached_property
    def _slow(self) -> JsonEncoding:
        """What takes the texts at which tiktoken panics."""
        return JsonEncoding(self._json, self._path)


def parse_ranks(data: bytes, path: object) -> list[bytes]:
    """The tokens of a rank file in the order of their ranks. Errors: FormatError naming the line."""
    tokens: list[bytes] = []
    lines = data.split(b"\n")
    if len(lines) > _MOST_TOKENS:
        raise FormatError(path, "lines", f"at most {_MOST_TOKENS:,}", f"{len(lines):,}")
    for number, line in enumerate(lines, start=1):
        if not line and number == len(lines):
            break
        code, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(code, validate=True)
        except binascii.Error:
            token = b""
        if not 0 < len(token) <= _LONGEST_TOKEN or rank != str(len(tokens)).encode():
            raise FormatError(path, f"line {number}", f"base64, a blank and the rank {len(tokens)}", repr(line[:80]))
        tokens.append(token)
    known = set(tokens)
    if len(known) != len(tokens) or any(bytes([byte]) not in known for byte in range(256)):
        raise FormatError(path, "tokens", "each once, and all 256 bytes", "a token twice, or a byte missing")
    return tokens


def rank_lines(tokens: Sequence[bytes]) -> bytes:
    """A rank file."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
