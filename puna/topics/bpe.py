"""Byte-pair encoding: which neighbours in a text are joined, in order; and how a vocabulary is learned from that text."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import tokenizers

from puna.arch.presets import find_preset
from puna.tokens.byte_level import BYTE_CHARACTERS
from puna.tokens.learning import learn_tokenizer
from puna.tokens.special_names import SPECIALS
from puna.tokens.tokenizer import Tokenizer
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Rows, Shown, Topic, Value
from puna.topics.words import Words

__all__ = ["TOPIC"]

_SHOWN, _LEARNED = 24, 8  # merges
_PRESETS = ("llama-1-7b", "llama-2-7b", "llama-3-8b")
_Merge = tuple[int, str, str]  # its rank, or how often the pair stands; left, right


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """What a tokenizer.json says: the words of the text as it cuts them, in its own characters; ids, and ranks of merges."""

    words: Sequence[str]
    ids: dict[str, int]
    ranks: dict[tuple[str, str], int]


def _show(subject: Subject, words: Words) -> Shown:
    presets = {name: find_preset(name) for name in _PRESETS}
    rows: Rows = {name: [each.generation.tokenizer, each.config.vocab_size] for name, each in presets.items()}
    released = {"vocabularies": Grid.of(words.of("kind", "vocabulary"), rows)}
    learned = _learned(subject, words)
    if subject.tokenizer is None:
        return Shown.of(learned=learned, released=released)
    return Shown.of(model=_encoded(subject, subject.tokenizer, words), learned=learned, released=released)


def _read(tokenizer: Tokenizer, text: str) -> _File:
    file = tokenizer.encoding.json_text()
    model, library = json.loads(file)["model"], tokenizers.Tokenizer.from_str(file)
    normal, cut = library.normalizer, library.pre_tokenizer
    text = text if normal is None else normal.normalize_str(text)
    return _File(
        words=[text] if cut is None else [word for word, _ in cut.pre_tokenize_str(text)],
        ids=model["vocab"],
        ranks={(left, right): rank for rank, (left, right) in enumerate(model["merges"])},
    )


def _encoded(subject: Subject, tokenizer: Tokenizer, words: Words) -> dict[str, Value]:
    """What makes the text's tokens: the merges, word by word, the lowest rank first."""
    file, ids = _read(tokenizer, subject.text), tokenizer.encode(subject.text)
    joined = [_joined_by_hand(word, file.ranks) for word in file.words]
    merges = [merge for made, _ in joined for merge in made]
    by_hand = [index for _, symbols in joined for symbol in symbols for index in _ids_by_hand(symbol, file.ids)]
    return {
        "text_bytes": len(subject.text.encode()),
        "text_tokens": len(ids),
        "merges": len(merges),
        "ids_difference": float(by_hand != ids),
        "round_trip_difference": float(tokenizer.decode(ids) != subject.text),
        "merges_in_order": _grid(merges[:_SHOWN], subject, file, words, "rank"),
    }


def _joined_by_hand(word: str, ranks: Mapping[tuple[str, str], int]) -> tuple[list[_Merge], list[str]]:
    """Join the neighbours of the lowest rank, the leftmost first, until none are left to join."""
    merges, symbols = list[_Merge](), list(word)
    while ranked := [(ranks[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in ranks]:
        rank, at = min(ranked)
        merges.append((rank, symbols[at], symbols[at + 1]))
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return merges, symbols


def _ids_by_hand(symbol: str, ids: Mapping[str, int]) -> list[int]:
    """What is no token is bytes."""
    return [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]


def _learned(subject: Subject, words: Words) -> dict[str, Value]:
    """The first merges of a vocabulary that is learned from this text alone."""
    bare = learn_tokenizer([], len(BYTE_CHARACTERS) + len(SPECIALS))
    merges = _learned_by_hand(_read(bare, subject.text))
    tokenizer = learn_tokenizer([subject.text], len(BYTE_CHARACTERS) + len(merges) + len(SPECIALS))
    file = _read(tokenizer, subject.text)
    return {
        "learned_difference": float(list(file.ranks) != [(left, right) for _, left, right in merges]),
        "learned_in_order": _grid(merges, replace(subject, tokenizer=tokenizer), file, words, "count"),
    }


def _learned_by_hand(file: _File) -> list[_Merge]:
    """Count all neighbours again, join the most frequent two (of several the smallest ids), and so on."""
    ids, ranks, merges = dict(file.ids), dict[tuple[str, str], int](), list[_Merge]()
    for rank in range(_LEARNED):
        counts = Counter(pair for word in file.words for pair in pairwise(_joined_by_hand(word, ranks)[1]))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        merges.append((counts[best], *best))
        ids["".join(best)], ranks[best] = len(BYTE_CHARACTERS) + rank, rank
    return merges


def _grid(merges: Sequence[_Merge], subject: Subject, file: _File, words: Words, first: str) -> Grid:
    """Args: subject: whose tokenizer knows the symbols. first: what the first number is."""
    rows = dict[str, tuple[float | str, ...]]()
    for place, (number, left, right) in enumerate(merges, start=1):
        pieces = replace(subject, ids=[file.ids[each] for each in (left, right, left + right)]).pieces
        rows[str(place)] = (number, *(f"[{piece}]" for piece in pieces))
    return Grid.of(words.of(first, "left", "right", "joined"), rows)


TOPIC = Topic(
    name="bpe",
    formula=(
        "learn:   a b -> ab,  (a, b) = argmax over neighbours of count(a b),  V = 256 bytes + merges + specials",
        "encode:  a b -> ab,  (a, b) = argmin over neighbours of rank(a b)",
        "decode(encode(s)) = s",
    ),
    symbols={"s": "bytes", "ab": "token", "V": "V"},
    show=_show,
    code=("puna/tokens/learning.py", "learn_tokenizer"),
    test=("tests/tokens/test_learning.py", "test_learning_equals_a_naive_recount_and_suits_bulk_encoding"),
)
