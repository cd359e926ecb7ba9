"""A topic's words in every language: words/NAME.toml beside it, read when it is shown."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from puna.errors import unknown_name
from puna.report.labels import check_language

__all__ = ["TOPICS", "Words", "headings", "topic_words"]

TOPICS = (
    "embedding", "tensors", "attention", "gqa", "rope", "sinusoidal", "norms", "activations", "block", "head", "loss",
    "backprop", "precision", "mixture", "svd", "pca", "bpe", "lora", "quantisation", "cache", "memory",
    "sparse-attention", "batching",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What a topic says in one language.

    Args: right: what the notes have right; corrected: what is otherwise, and why. symbols, numbers, parts, pictures: what
          each sign, number, part and picture is, by its name.
    """

    title: str
    right: str
    corrected: str
    symbols: Mapping[str, str]
    numbers: Mapping[str, str]
    parts: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)

    def of(self, *numbers: str) -> list[str]:
        """What these numbers are, for the columns of a grid."""
        return [self.numbers[name] for name in numbers]


def topic_words(topic: str, lang: str) -> Words:
    """The words of a topic. Errors: UsageError for a topic or a language that is not there."""
    if topic not in TOPICS:
        raise unknown_name("topic", topic, TOPICS)
    return Words(**_read(topic, lang))


def headings(lang: str) -> Mapping[str, str]:
    """What stands above the parts of every topic. Errors: UsageError for a language that is not there."""
    return _read("headings", lang)


def _read(name: str, lang: str) -> dict[str, Any]:
    check_language(lang)
    file = resources.files(__package__) / "words" / f"{name}.toml"
    languages: dict[str, dict[str, Any]] = tomllib.loads(file.read_text("utf-8"))
    return languages[lang]
