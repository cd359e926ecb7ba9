"""Every word of a report, in one table per language, put together from a file for most pages, one for compression's and one
for studies'.

A label may hold {placeholders}; every language has the same keys with the same placeholders.
"""

from collections.abc import Mapping

from puna.errors import unknown_name
from puna.report.chinese import CHINESE
from puna.report.chinese_compression import CHINESE_COMPRESSION
from puna.report.chinese_lab import CHINESE_LAB
from puna.report.english import ENGLISH
from puna.report.english_compression import ENGLISH_COMPRESSION
from puna.report.english_lab import ENGLISH_LAB

__all__ = ["LABELS", "label"]

LABELS: Mapping[str, Mapping[str, str]] = {
    "en": {**ENGLISH, **ENGLISH_COMPRESSION, **ENGLISH_LAB},
    "zh": {**CHINESE, **CHINESE_COMPRESSION, **CHINESE_LAB},
}


def label(lang: str, key: str, **values: object) -> str:
    """The label `key` in a language, its placeholders filled.

    Errors:  UsageError for a language without labels; a wrong key or a missing value is our own bug (KeyError).
    """
    if lang not in LABELS:
        raise unknown_name("language", lang, LABELS)
    return LABELS[lang][key].format(**values)
