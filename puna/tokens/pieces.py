"""SentencePiece-BPE: text to pieces, exactly as sentencepiece encodes it.

A text gets a leading blank, blanks become U+2581, and what stands is a row of characters; the neighbours whose joined
piece has the best score become one, the leftmost first among equals, until no join is a piece. What is no piece then is
written in byte pieces. Where no piece holds U+2581 behind another character, no join crosses the beginning of a word:
words are encoded apart, and common ones remembered.
Source: Kudo & Richardson 2018, arXiv:1808.06226; oracle: sentencepiece 0.2.3; format: docs/formats.md 4.
"""

import heapq
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from puna.errors import FormatError
from puna.tokens.byte_level import begin_with, special_entry
from puna.tokens.json_file import BLANK

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "UNUSED", "USER_DEFINED", "Piece", "PieceEncoding"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_TYPES = {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE}
_BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")
_WORD = re.compile(f"{BLANK}*[^{BLANK}]+|{BLANK}+")
_CROSSES_WORDS = re.compile(f"[^{BLANK}]{BLANK}")
_REMEMBERED, _LONGEST_REMEMBERED = 100_000, 64


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of a vocabulary."""

    text: str
    score: float
    type: int


class PieceEncoding:
    """A SentencePiece vocabulary of Llama 1 or 2."""

    kind: Literal["pieces"] = "pieces"

    def __init__(
        self, pieces: Sequence[Piece], path: object, *, is_prefixed: bool = True, bos: str | None = None
    ) -> None:
        """Errors: FormatError: a piece twice, of another type, without a finite score; no byte pieces; no unknown piece."""
        self.pieces, self.is_prefixed, self._bos = tuple(pieces), is_prefixed, bos
        self.adds_bos = bos is not None
        _check(self.pieces, path)
        self._byte_ids = _byte_ids(self.pieces, path)
        self.unknown = next(piece.text for piece in pieces if piece.type == UNKNOWN)
        self.specials: Mapping[str, int] = {
            piece.text: index for index, piece in enumerate(pieces) if piece.type in (CONTROL, UNKNOWN)
        }
        bytes_of = {index: bytes([byte]) for byte, index in enumerate(self._byte_ids)}
        self.table = tuple(
            bytes_of.get(index) or piece.text.replace(BLANK, " ").encode() for index, piece in enumerate(pieces)
        )
        self._ids = {p.text: index for index, p in enumerate(pieces) if p.type in (NORMAL, USER_DEFINED)}
        best_first = sorted({p.score for p in pieces if p.type == NORMAL}, reverse=True)
        place = {score: index for index, score in enumerate(best_first)}
        self._place = {p.text: place[p.score] for p in pieces if p.type == NORMAL}
        frozen = sorted((p.text for p in pieces if p.type == USER_DEFINED), key=len, reverse=True)
        self._frozen = re.compile(f"({'|'.join(map(re.escape, frozen))})") if frozen else None
        is_split = not any(_CROSSES_WORDS.search(text) for text in self._ids)
        self._word = _WORD if is_split else re.compile(r"(?s).+")
        names = sorted(self.specials, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, names))})")
        self._known: dict[str, list[int]] = {}

    @property
    def has_user_defined(self) -> bool:
        """Whether some pieces stand as they are wherever they occur: a tokenizer.json puts blanks around these."""
        return self._frozen is not None

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text."""
        if not text:
            return []
        blanks = (f" {text}" if self.is_prefixed else text).replace(" ", BLANK)
        ids: list[int] = []
        for word in self._word.findall(blanks):
            known = self._known.get(word)
            ids += self._remember(word) if known is None else known
        return ids

    def encode_special(self, text: str) -> list[int]:
        """As `encode`, but names of special pieces stand for their ids; each text between them is encoded on its own."""
        ids: list[int] = []
        for part in self._special.split(text):
            ids += [self.specials[part]] if part in self.specials else self.encode(part)
        return ids

    def json_text(self) -> str:
        """The vocabulary as a tokenizer.json, as transformers' converter writes one."""
        return self._json

    def _remember(self, word: str) -> list[int]:
        ids = self._encode_word(word)
        if len(word) <= _LONGEST_REMEMBERED and len(self._known) < _REMEMBERED:
            self._known[word] = ids
        return ids

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int] = []
        for part in [word] if self._frozen is None else self._frozen.split(word):
            if self._frozen is not None and part in self._ids and part not in self._place:
                ids.append(self._ids[part])
            elif part:
                for symbol in _join(list(part), self._place):
                    known = self._ids.get(symbol)
                    ids += [known] if known is not None else [self._byte_ids[byte] for byte in symbol.encode()]
        return ids

    @cached_property
    def _json(self) -> str:
        vocab = {piece.text: index for index, piece in enumerate(self.pieces)}
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if self.is_prefixed else []
        prepend = [{"type": "Prepend", "prepend": BLANK}] if self.is_prefixed else []
        blank = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
        back = {"type": "Replace", "pattern": {"String": BLANK}, "content": " "}
        file: dict[str, Any] = {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [special_entry(name, index) for name, index in self.specials.items()],
            "normalizer": {"type": "Sequence", "normalizers": [*prepend, blank]},
            "pre_tokenizer": None,
            "post_processor": begin_with(self._bos, self.specials),
            "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
            "model": {
                "type": "BPE", "dropout": None, "unk_token": self.unknown, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                "vocab": vocab, "merges": self._merges(),
            },
        }  # fmt: skip
        return json.dumps(file, ensure_ascii=False, indent=2)

    def _merges(self) -> list[list[str]]:
        """Every split of a piece into two, the best score first, then by their ids."""
        merges = []
        for text, place in self._place.items():
            for cut in range(1, len(text)):
                left, right = text[:cut], text[cut:]
                if left in self._place and right in self._place:
                    merges.append((place, self._ids[left], self._ids[right], left, right))
        return [[left, right] for _, _, _, left, right in sorted(merges)]


def _join(symbols: list[str], place: Mapping[str, int]) -> list[str]:
    """Join neighbours, the best place first and the leftmost among equals, until nothing can be joined."""
    count, find = len(symbols), place.get
    after, before = list(range(1, count + 1)), list(range(-1, count - 1))
    joins = _Joins(map(find, map(str.__add__, symbols, symbols[1:])))
    while (best := joins.pop()) is not None:
        at, left = best
        right = after[left]
        if right >= count or not symbols[left] or find(joined := symbols[left] + symbols[right]) != at:
            continue  # one of the two was joined to another neighbour since
        symbols[left], symbols[right] = joined, ""
        after[left], ahead = after[right], before[left]
        if ahead >= 0:
            joins.add(find(symbols[ahead] + joined), ahead)
        if after[left] < count:
            before[after[left]] = left
            joins.add(find(joined + symbols[after[left]]), left)
    return [symbol for symbol in symbols if symbol]


class _Joins:
    """Joins by their place, the best first, and each place's from left to right.

    What is known of a place when its turn comes is sorted once, and what turns up later goes into a heap of its own: a
    megabyte of one letter takes a time in proportion to its length.
    """

    def __init__(self, places: Iterable[int | None]) -> None:
        """Args: places: of the symbols 0, 1, ... joined to the next one; None: no piece."""
        self._waiting: dict[int, list[int]] = {}
        for left, at in enumerate(places):
            if at is not None:
                self._waiting.setdefault(at, []).append(left)
        self._begun: dict[int, tuple[list[int], list[int]]] = {}
        self._places = list(self._waiting)
        heapq.heapify(self._places)

    def add(self, at: int | None, left: int) -> None:
        """Take up a join that has become possible."""
        if at in self._begun:
            heapq.heappush(self._begun[at][1], left)
        elif at in self._waiting:
            self._waiting[at].append(left)
        elif at is not None:
            self._waiting[at] = [left]
            heapq.heappush(self._places, at)

    def pop(self) -> tuple[int, int] | None:
        """The best place and its leftmost symbol; None where no join is left."""
        while self._places:
            at = self._places[0]
            if at not in self._begun:
                self._begun[at] = sorted(self._waiting.pop(at), reverse=True), []
            known, late = self._begun[at]
            if known and not (late and late[0] < known[-1]):
                return at, known.pop()
            if late:
                return at, heapq.heappop(late)
            heapq.heappop(self._places)
            del self._begun[at]
        return None


def _check(pieces: Sequence[Piece], path: object) -> None:
    if len({piece.text for piece in pieces}) != len(pieces):
        raise FormatError(path, "pieces", "each piece once", "one twice")
    for index, piece in enumerate(pieces):
        if piece.type not in _TYPES or not math.isfinite(piece.score) or not piece.text:
            wanted = "a piece of type 1, 2, 3, 4 or 6 with a finite score"
            raise FormatError(path, f"pieces[{index}]", wanted, f"type {piece.type}, score {piece.score}")
    if not any(piece.type == UNKNOWN for piece in pieces):
        raise FormatError(path, "pieces", "an unknown piece", "none")


def _byte_ids(pieces: Sequence[Piece], path: object) -> tuple[int, ...]:
    """The id of each byte's piece. Errors: FormatError: a byte without one."""
    found = {}
    for index, piece in enumerate(pieces):
        match = _BYTE_NAME.fullmatch(piece.text)
        if (match is not None) != (piece.type == BYTE):
            raise FormatError(path, f"pieces[{index}]", "type 6 for <0x00> to <0xFF>, and for these alone", piece.text)
        if match is not None:
            found[int(match[1], 16)] = index
    missing = [byte for byte in range(256) if byte not in found]
    if missing:
        raise FormatError(path, "pieces", "a piece for each byte", f"none for {missing[0]}", "byte fallback is needed")
    return tuple(found[byte] for byte in range(256))
