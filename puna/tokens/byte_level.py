"""Byte-level BPE as a tokenizer.json spells it: bytes as printable characters, the two patterns, the file's skeleton.

Rank files (Llama 3's tokenizer.model) become such a file by listing every split of every token into two tokens, in the
order of (rank, left id, right id): with `ignore_merges` the library then gives tiktoken's ids. docs/formats.md 4.
"""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

__all__ = [
    "BYTE_CHARACTERS",
    "LLAMA3_PATTERN",
    "SplitName",
    "all_splits",
    "begin_with",
    "byte_level_json",
    "name_of",
    "special_entry",
    "split_of",
]

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_characters() -> tuple[str, ...]:
    """The printable character that stands for each byte in a tokenizer.json (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_CHARACTERS = _byte_characters()
_CHARACTER_OF = dict(enumerate(BYTE_CHARACTERS))
SplitName = Literal["llama3", "gpt2"]
_LLAMA3_SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
_GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def name_of(data: bytes) -> str:
    """The name of a token in a tokenizer.json."""
    return data.decode("latin-1").translate(_CHARACTER_OF)


def split_of(file: Mapping[str, Any]) -> SplitName | None:
    """How a tokenizer.json cuts a text into words: as Llama 3 does, as GPT-2 does, or (None) otherwise."""
    splitter, is_whole = file["pre_tokenizer"], file["model"]["ignore_merges"]
    if file["normalizer"] is not None or not isinstance(splitter, dict):
        return None
    if splitter == _LLAMA3_SPLIT:
        return "llama3"
    return "gpt2" if splitter | {"trim_offsets": True} == _GPT2_SPLIT and not is_whole else None


def byte_level_json(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    specials: Mapping[str, int],
    bos: str | None,
    *,
    split: SplitName = "llama3",
    added: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """A tokenizer.json.

    Args: vocab: the ids of all tokens, by their names in byte characters. specials: theirs. added: of tokens that stand
          as they are wherever they occur, and are not special.
    """
    specials, own = {**specials, **added}, specials
    if any(index < len(vocab) for index in specials.values()):  # the library numbers what the vocabulary lacks itself
        vocab = {**vocab, **specials}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": split == "llama3",
        "vocab": dict(vocab), "merges": list(map(list, merges)),
    }  # fmt: skip
    file = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [special_entry(name, index, is_special=name in own) for name, index in specials.items()],
        "normalizer": None, "pre_tokenizer": _LLAMA3_SPLIT if split == "llama3" else _GPT2_SPLIT,
        "post_processor": begin_with(bos, specials),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }  # fmt: skip
    return json.dumps(file, ensure_ascii=False, indent=2)


def begin_with(bos: str | None, specials: Mapping[str, int]) -> dict[str, Any] | None:
    """What makes transformers put BOS before a text, as Llama's own code does."""
    if bos is None:
        return None
    first = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}
    names = {bos: {"id": bos, "ids": [specials[bos]], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": first, "pair": [*first, *second], "special_tokens": names}


def special_entry(name: str, index: int, *, is_special: bool = True) -> dict[str, Any]:
    """A token among the added_tokens of a tokenizer.json."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": name, **flags, "special": is_special}


def all_splits(tokens: Sequence[bytes]) -> list[tuple[str, str]]:
    """Every way to join two tokens to a third, by (the third's id, left id, right id)."""
    ids = {token: index for index, token in enumerate(tokens)}
    names = [name_of(token) for token in tokens]
    merges = []
    for token in tokens:
        halves = ((ids.get(token[:cut]), ids.get(token[cut:])) for cut in range(1, len(token)))
        pairs = sorted((left, right) for left, right in halves if left is not None and right is not None)
        merges += [(names[left], names[right]) for left, right in pairs]
    return merges
