import string

import pytest

from puna.errors import UsageError
from puna.report.labels import LABELS, label


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("lang", sorted(LABELS))
def test_every_language_has_every_label(lang: str) -> None:
    assert LABELS[lang].keys() == LABELS["en"].keys()


@pytest.mark.parametrize("lang", sorted(LABELS))
def test_every_language_fills_the_same_placeholders(lang: str) -> None:
    for key, text in LABELS["en"].items():
        assert placeholders(LABELS[lang][key]) == placeholders(text), key


@pytest.mark.parametrize("lang", sorted(LABELS))
def test_no_label_is_empty_and_backticks_come_in_pairs(lang: str) -> None:
    assert all(text.strip() and text.count("`") % 2 == 0 for text in LABELS[lang].values())


def test_a_label_is_filled() -> None:
    assert label("en", "drawing.layers", layers=6) == "× 6 layers"
    assert label("zh", "drawing.layers", layers=6) == "× 6 層"


def test_an_unknown_language_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown language 'de'"):
        label("de", "page.contents")
