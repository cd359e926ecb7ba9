"""Every word of a report, in one table per language; a further language is one more file like english.py.

A label may hold {placeholders}; every language has the same keys with the same placeholders.
"""

from collections.abc import Mapping

from puna.errors import unknown_name
from puna.report.chinese import CHINESE
from puna.report.english import ENGLISH

__all__ = ["LABELS", "label"]

LABELS: Mapping[str, Mapping[str, str]] = {"en": ENGLISH, "zh": CHINESE}


def label(lang: str, key: str, **values: object) -> str:
    """The label `key` in a language, its placeholders filled.

    Errors:  UsageError for a language without labels; a wrong key or a missing value is our own bug (KeyError).
    """
    if lang not in LABELS:
        raise unknown_name("language", lang, LABELS)
    return LABELS[lang][key].format(**values)
