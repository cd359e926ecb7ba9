import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.report.numbers import human_bytes, human_count, human_number, human_percent, human_seconds, in_format


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (999_600, "1 MB"), (1_234_567, "1.23 MB"), (16.06e9, "16.1 GB"), (-2e6, "−2 MB")],
)
def test_bytes_have_three_digits_and_a_decimal_unit(value: float, text: str) -> None:
    assert human_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1023, "1,023 B"), (1024, "1 KiB"), (24 * 2**30, "24 GiB"), (1.5 * 2**40, "1.5 TiB")]
)
def test_binary_bytes_count_in_powers_of_1024(value: float, text: str) -> None:
    assert human_bytes(value, is_binary=True) == text


def test_counts_read_as_in_a_models_name() -> None:
    assert [human_count(n) for n in (0, 512, 41_943_040, 8_030_261_248)] == ["0", "512", "41.9M", "8.03B"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (3.5, "3.50"), (0.01234, "0.0123"), (150.2, "150"), (1234.5, "1,234"), (-0.5, "−0.500")],
)
def test_plain_numbers_keep_three_digits(value: float, text: str) -> None:
    assert human_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 µs"), (0.0034, "3.4 ms"), (0.9999, "1 s"), (12.34, "12.3 s"), (59.97, "1 min"), (95, "1 min 35 s"),
     (3599.9, "1 h"), (7500, "2 h 5 min"), (86_399, "1 d"), (270_000, "3 d 3 h"), (-95, "−1 min 35 s")],
)  # fmt: skip
def test_durations_use_two_units_at_most(value: float, text: str) -> None:
    assert human_seconds(value) == text


def test_a_share_is_a_percentage() -> None:
    assert human_percent(0.0521) == "5.21 %"
    assert human_percent(12.34) == "1,234 %"


@given(st.floats(0, 999e12))
def test_no_number_reaches_the_next_unit(value: float) -> None:
    assert not human_bytes(value).startswith(("1000", "1,000"))
    assert not human_count(value).startswith(("1000", "1,000"))


@given(st.floats(60, 1e7))
def test_a_duration_says_the_truth_to_its_last_unit(value: float) -> None:
    parts = human_seconds(value).split()
    sizes = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    total = sum(int(number) * sizes[unit] for number, unit in zip(parts[::2], parts[1::2], strict=True))
    largest = sizes[parts[1]]
    assert abs(total - value) <= {60: 0.5, 3600: 30, 86400: 1800}[largest] + 1e-6


@given(st.sampled_from([math.inf, -math.inf, math.nan]), st.sampled_from(["number", "count", "bytes", "seconds"]))
def test_what_is_not_finite_is_still_written(value: float, form: str) -> None:
    assert in_format(value, form) in ("inf", "−inf", "nan")
