import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import UsageError
from puna.jobs.quantities import parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "count"), [("5000", 5000), ("300K", 300_000), ("1.5M", 1_500_000), ("2G", 2 * 10**9), ("10_000", 10_000)]
)
def test_counts_are_read(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GB", 16 * 10**9),
        ("16GiB", 2**34),
        ("16 gb", 16 * 10**9),
        ("1.5KiB", 1536),
        ("7", 7),
        ("7B", 7),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "16XB", "1e9", "0.1B", "16GBGB", "1.GB", "٣GB", "nan"])
def test_bad_sizes_are_refused_with_a_hint(text):
    with pytest.raises(UsageError) as error:
        parse_bytes(text)
    assert error.value.hint


@pytest.mark.parametrize("text", ["", "K", "1.5", "3GB", "1.0001K", "1,000"])
def test_bad_counts_are_refused(text):
    with pytest.raises(UsageError):
        parse_count(text)


@given(st.integers(0, 10**18), st.sampled_from([("GB", 10**9), ("GiB", 2**30), ("K", None)]))
def test_every_whole_number_of_units_is_exact(number, unit):
    name, factor = unit
    assert (
        (parse_count(f"{number}K") == 1000 * number)
        if factor is None
        else parse_bytes(f"{number}{name}") == number * factor
    )
