"""Stop strings: the result depends on the text alone, never on how it was split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import UsageError
from puna.generation.stopping import StopScanner

LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def shown(pieces: list[str], stop: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stop)
    text = "".join(scanner.push(piece) for piece in pieces)
    return text + scanner.finish(), scanner.is_found


def by_definition(text: str, stop: list[str]) -> tuple[str, bool]:
    """The first prefix of the text that ends in a stop string, less the longest that it ends in."""
    for end in range(1, len(text) + 1):
        ending = [len(s) for s in stop if text[:end].endswith(s)]
        if ending:
            return text[: end - max(ending)], True
    return text, False


@given(pieces=st.lists(LETTERS, max_size=8), stop=STOPS)
def test_found_across_any_borders_as_defined(pieces: list[str], stop: list[str]) -> None:
    assert shown(pieces, stop) == by_definition("".join(pieces), stop)


@given(text=LETTERS, stop=STOPS)
def test_nothing_is_shown_that_is_later_taken_back(text: str, stop: list[str]) -> None:
    scanner, so_far = StopScanner(stop), ""
    final, _ = by_definition(text, stop)
    for character in text:
        so_far += scanner.push(character)
        assert final.startswith(so_far)


@given(text=LETTERS, stop=STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stop: list[str]) -> None:
    scanner = StopScanner(stop)
    so_far = "".join(scanner.push(character) for character in text)
    if not scanner.is_found:
        held = text[len(so_far) :]
        assert held == "" or any(s.startswith(held) and s != held for s in stop)


def test_across_three_pieces_and_after_it_nothing() -> None:
    scanner = StopScanner(["STOP"])
    assert [scanner.push(piece) for piece in ("one S", "TO", "Px", "two")] == ["one ", "", "", ""]
    assert scanner.is_found
    assert scanner.finish() == ""


def test_a_false_beginning_is_given_back() -> None:
    scanner = StopScanner(["STOP"])
    assert scanner.push("a ST") == "a "
    assert scanner.push("ORM") == "STORM"
    assert scanner.push(" S") == " "
    assert scanner.finish() == "S"
    assert not scanner.is_found


@pytest.mark.parametrize("stop", [[""], ["a", ""], "abc"])
def test_an_empty_stop_string_or_a_bare_one_is_refused(stop: object) -> None:
    with pytest.raises(UsageError, match="stop"):
        StopScanner(stop)
