"""Strict JSON: one value for each key, no NaN, and every refusal names file and key."""

from pathlib import Path

import pytest

from puna.errors import FormatError
from puna.weights.strict_json import JsonObject, parse_object, read_object

HERE = Path("here.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' stands twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a\\u0007": 1}', "cannot be shown"),
        (b'{"\\ud800": 1}', "cannot be shown"),
        (b'{"a": 1', "strict JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "strict JSON"),
        (b'{"a": ' + b"[" * 100_000, "strict JSON"),
        (b"\xff\xfe{}", "strict JSON"),
        (b"\xef\xbb\xbf{}", "strict JSON"),
        (b"[1]", "a JSON object"),
        (b"", "strict JSON"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(text, reason):
    with pytest.raises(FormatError, match=reason):
        parse_object(HERE, text)


def test_a_refusal_names_file_and_key_even_inside_an_object():
    child = parse_object(HERE, b'{"rope": {"factor": "two"}}').child("rope")
    with pytest.raises(FormatError, match=r"here\.json: rope\.factor: expected a number, got 'two'"):
        child.number("factor")


@pytest.mark.parametrize("value", [None, True, 1.0, "1", -1, 0, 2**63, [1]])
def test_only_whole_numbers_in_range_are_integers(value):
    with pytest.raises(FormatError):
        JsonObject(HERE, {"a": value}).integer("a")


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf"), 10**400])
def test_only_finite_numbers_are_numbers(value):
    with pytest.raises(FormatError):
        JsonObject(HERE, {"a": value}).number("a")


def test_missing_takes_the_default_and_null_does_not():
    assert JsonObject(HERE, {}).integer("a", 4) == 4
    assert JsonObject(HERE, {"a": 0}).integer("a", 4, minimum=0) == 0
    assert JsonObject(HERE, {"a": 3}).number("a") == 3.0
    assert JsonObject(HERE, {}).flag("a", default=True) is True
    with pytest.raises(FormatError, match="got None"):
        JsonObject(HERE, {"a": None}).integer("a", 4)
    with pytest.raises(FormatError, match="got nothing"):
        JsonObject(HERE, {}).integer("a")


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_a_character():
    assert parse_object(Path("a.json"), b'{"text": "\\ud83e\\udd99", "\\\\ud800": 1}').values["text"] == "\U0001f999"
    for text in (b'{"text": "\\ud800"}', b'{"\\uD800": 1}', b'{"a": [{"b": "\\udC00"}]}'):
        with pytest.raises(FormatError, match="expected strict JSON"):
            parse_object(Path("a.json"), text)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent.json", tmp_path / ("x" * 5000)):
        with pytest.raises(FormatError):
            read_object(path)


def test_an_unknown_key_is_refused_where_the_keys_are_closed():
    with pytest.raises(FormatError, match="mscale"):
        JsonObject(HERE, {"factor": 1, "mscale": 2}).only("factor")
