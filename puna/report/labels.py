"""Every word of a report, in one table per language, put together from a file for most pages, one for compression's and one
for studies'.

A label may hold {placeholders}; every language has the same keys with the same placeholders.
"""

import re
from collections.abc import Mapping

from puna.errors import unknown_name
from puna.report.chinese import CHINESE
from puna.report.chinese_compression import CHINESE_COMPRESSION
from puna.report.chinese_lab import CHINESE_LAB
from puna.report.english import ENGLISH
from puna.report.english_compression import ENGLISH_COMPRESSION
from puna.report.english_lab import ENGLISH_LAB

__all__ = ["LABELS", "check_language", "label", "phrase"]

LABELS: Mapping[str, Mapping[str, str]] = {
    "en": {**ENGLISH, **ENGLISH_COMPRESSION, **ENGLISH_LAB},
    "zh": {**CHINESE, **CHINESE_COMPRESSION, **CHINESE_LAB},
}

_VARIES = re.compile(r"(?<=of kind )\w+|(?<!\S)(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|nan|inf)(?![\w/])")


def check_language(lang: str) -> None:
    """Errors: UsageError for a language without labels, naming the nearest."""
    if lang not in LABELS:
        raise unknown_name("language", lang, LABELS)


def label(lang: str, key: str, **values: object) -> str:
    """The label `key` in a language, its placeholders filled.

    Errors:  UsageError for a language without labels; a wrong key or a missing value is our own bug (KeyError).
    """
    check_language(lang)
    return LABELS[lang][key].format(**values)


def phrase(lang: str, family: str, words: str) -> str:
    """An English phrase, which a run may have written long ago, in a language; a name, which has no label, stays as it is.

    What varies in a phrase, numbers and the word after `of kind`, fills its label's {first}, {second} and {third}.
    """
    key = f"{family}." + re.sub(r"\W+", "_", _VARIES.sub("", words).lower()).strip("_")
    values = zip(("first", "second", "third"), _VARIES.findall(words), strict=False)
    return label(lang, key, **dict(values)) if key in LABELS["en"] else words
