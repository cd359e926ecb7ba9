import string

import pytest

from puna.errors import UsageError
from puna.report.labels import LABELS, check_language, label, phrase


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
    with pytest.raises(UsageError, match="unknown language 'zhh'"):
        check_language("zhh")


@pytest.mark.parametrize(
    ("family", "words", "said"),
    [
        ("lab.arm", "2 key-value heads", "2 個鍵值頭"),
        ("lab.arm", "transformer-2017", "transformer-2017"),
        ("lab.arm", "alpha = 0.5 r", "alpha = 0.5 r"),
        ("lab.arm", "bfloat16 products", "bfloat16 乘積"),
        ("lab.reason", "ends at 7.1 nats, above the 5.7 of guessing", "最終是 7.1 奈特，比亂猜的 5.7 還高"),
        ("lab.reason", "step 4: loss nan with gradient norm 1e+05", "第 4 步的損失是 nan，梯度範數是 1e+05"),
        ("trained.exchanged", "scores times 1", "分數乘以 1"),
        ("trained.exchanged", "scores times 1/d", "分數乘以 1/d"),
        ("trained.exchanged", "norms of kind layer", "`layer` 型的正規化"),
    ],
)
def test_a_phrase_keeps_its_numbers_and_a_name_stays(family: str, words: str, said: str) -> None:
    assert phrase("zh", family, words) == said
    assert phrase("en", family, words) == words
