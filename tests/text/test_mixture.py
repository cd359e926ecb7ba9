import random
from collections import Counter
from itertools import islice

import pytest

from puna.errors import UsageError
from puna.text.mixture import Mixture, cap_epochs, epochs, exponent_weights, integer_weights, unimax_weights

SIZES = (20e6, 6e6, 1.5e6, 0.3e6)
BUDGET = 30e6


def assert_bound(weights, steps):
    total = sum(weights)
    served = [0] * len(weights)
    for step, source in enumerate(islice(Mixture(weights=weights), steps), 1):
        served[source] += 1
        assert all(abs(count * total - step * w) < total for count, w in zip(served, weights, strict=True))


def test_no_source_is_ever_a_whole_window_away_from_its_share():
    rng = random.Random(0)
    for _ in range(60):
        assert_bound(tuple(rng.randint(1, 1000) for _ in range(rng.randint(1, 12))), 400)
    assert_bound((1,) * 12 + (20, 40, 80), 1000)
    assert_bound((0, 3, 0, 1), 50)


def test_serving_the_largest_credit_instead_would_break_the_bound():
    weights = (1,) * 12 + (20, 40, 80)
    total, served, worst = sum(weights), [0] * 15, 0
    for step in range(1, 1001):
        source = max(range(15), key=lambda i: step * weights[i] - served[i] * total)
        served[source] += 1
        worst = max(worst, *(abs(n * total - step * w) for n, w in zip(served, weights, strict=True)))
    assert worst > 1.2 * total


def test_the_order_is_a_function_of_weights_and_step_alone():
    mixture = Mixture(weights=(5, 3, 1))
    schedule = mixture.schedule(100)
    assert [mixture.source_at(step) for step in range(100)] == schedule
    assert Mixture(weights=(50, 30, 10)).schedule(100) == schedule


def test_counts_are_those_of_the_schedule_at_every_step():
    mixture = Mixture(weights=(7, 4, 0, 2))
    schedule = mixture.schedule(60)
    for step in range(60):
        served = Counter(schedule[:step])
        assert mixture.counts(step) == tuple(served[index] for index in range(4))
    assert mixture.counts(13 * 10**9) == (7 * 10**9, 4 * 10**9, 0, 2 * 10**9)


@pytest.mark.parametrize("weights", [(), (0, 0), (1, -1)])
def test_weights_that_serve_nothing_are_refused(weights):
    with pytest.raises(UsageError):
        Mixture(weights=weights)


@pytest.mark.parametrize(("exponent", "expected"), [(0.5, (0.77, 1.41, 2.82, 6.30)), (0.3, (0.61, 1.43, 3.77, 11.62))])
def test_exponents_give_the_epochs_of_the_reference(exponent, expected):
    assert epochs(exponent_weights(SIZES, exponent), SIZES, BUDGET) == pytest.approx(expected, abs=0.005)


def test_repeats_grow_as_the_size_ratio_to_the_exponent_minus_one():
    sizes = (1000.0, 1.0)
    large, small = epochs(exponent_weights(sizes, 0.3), sizes, 1.0)
    assert small / large == pytest.approx(1000**0.7)
    assert round(small / large) == 126
    assert exponent_weights(sizes, 1) == pytest.approx((1000 / 1001, 1 / 1001))
    assert exponent_weights(sizes, 0) == (0.5, 0.5)


def test_unimax_gives_the_epochs_of_the_reference():
    assert epochs(unimax_weights(SIZES, BUDGET, 4), SIZES, BUDGET) == pytest.approx((0.57, 1.90, 4, 4), abs=0.005)


def test_capped_sources_stop_at_the_cap_and_the_others_keep_their_proportions():
    weights = exponent_weights(SIZES, 0.3)
    capped = cap_epochs(weights, SIZES, BUDGET, 4)
    read = epochs(capped, SIZES, BUDGET)
    assert sum(capped) == pytest.approx(1)
    assert max(read) == pytest.approx(4)
    assert read[3] == pytest.approx(4)
    assert capped[0] / capped[1] == pytest.approx(weights[0] / weights[1])
    assert cap_epochs(weights, SIZES, 1e6, 4) == pytest.approx(weights)
    assert epochs(cap_epochs(weights, SIZES, sum(SIZES) * 4, 4), SIZES, sum(SIZES) * 4) == pytest.approx([4] * 4)


def test_ties_go_to_the_lowest_index():
    assert Mixture(weights=(1, 1, 1)).schedule(6) == [0, 1, 2, 0, 1, 2]
    assert Mixture(weights=(1, 2, 1)).schedule(4) == [1, 0, 1, 2]


@pytest.mark.parametrize("share", [lambda: unimax_weights(SIZES, 4.01 * sum(SIZES), 4),
                                   lambda: cap_epochs((1, 1, 1, 0), SIZES, 4 * sum(SIZES), 4),
                                   lambda: exponent_weights((1, 0), 0.5)])  # fmt: skip
def test_more_than_the_cap_allows_or_an_empty_source_is_refused(share):
    with pytest.raises(UsageError):
        share()


def test_whole_weights_sum_to_the_total_and_miss_by_less_than_one():
    weights = exponent_weights(SIZES, 0.3)
    whole = integer_weights(weights, 1000)
    assert sum(whole) == 1000
    assert all(abs(count - 1000 * weight) < 1 for count, weight in zip(whole, weights, strict=True))
    assert integer_weights((1, 1, 1), 4) == (2, 1, 1)
