"""Ranks under one budget: as good as trying everything, never over the budget, never worse with more of it."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from puna.compression.allocation import uniform_rank
from puna.compression.hulls import Matrix, Option, allocate_ranks, lower_hull, rank_options, spend
from puna.errors import UsageError

LOSSES = st.floats(0, 100)


@st.composite
def choices(draw: st.DrawFn) -> list[Option]:
    """A few options of one matrix; the dearer ones lose less, as ranks do."""
    costs = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5, unique=True))
    losses = sorted(draw(st.lists(LOSSES, min_size=len(costs), max_size=len(costs))), reverse=True)
    return [Option(cost=c, loss=loss, rank=i) for i, (c, loss) in enumerate(zip(sorted(costs), losses, strict=True))]


INSTANCES = st.lists(choices(), min_size=1, max_size=4)


def cheapest(instance: Sequence[Sequence[Option]]) -> int:
    return sum(options[0].cost for options in instance)


def best(instance: Sequence[Sequence[Option]], budget: int) -> float:
    """The least loss of all choices that fit, every one of them tried."""
    tried = itertools.product(*instance)
    return min(sum(o.loss for o in choice) for choice in tried if sum(o.cost for o in choice) <= budget)


def hulls(instance: Sequence[Sequence[Option]]) -> dict[str, list[Option]]:
    return {str(i): lower_hull(options) for i, options in enumerate(instance)}


def falling(matrix: tuple[int, int], start: float, decay: float) -> Matrix:
    d_out, d_in = matrix
    return Matrix(d_out=d_out, d_in=d_in, energies=[start * decay**i for i in range(min(d_out, d_in))])


@given(INSTANCES)
def test_at_the_ends_of_hull_segments_the_greedy_is_the_best_of_all_choices(instance: list[list[Option]]) -> None:
    found = spend(hulls(instance), 10_000)
    segments = [(a, b) for hull in hulls(instance).values() for a, b in itertools.pairwise(hull)]
    segments.sort(key=lambda s: (s[1].loss - s[0].loss) / (s[1].cost - s[0].cost))
    budget = cheapest(instance)
    for before, after in [(Option(cost=0, loss=0, rank=None),) * 2, *segments]:
        budget += after.cost - before.cost
        allocation = spend(hulls(instance), budget)
        assert allocation.cost == budget
        assert allocation.loss == pytest.approx(best(instance, budget), rel=1e-9, abs=1e-9)
        assert allocation.gap == pytest.approx(0, abs=1e-9)
    assert found.cost == budget


@given(INSTANCES, st.integers(0, 300))
def test_elsewhere_the_reported_gap_bounds_the_distance_to_the_best_choice(
    instance: list[list[Option]], extra: int
) -> None:
    budget = cheapest(instance) + extra
    allocation = spend(hulls(instance), budget)
    assert allocation.cost <= budget
    assert allocation.gap >= 0
    assert allocation.loss - allocation.gap <= best(instance, budget) + 1e-9
    assert best(instance, budget) <= allocation.loss + 1e-9
    widest = max((a.loss - b.loss for hull in hulls(instance).values() for a, b in itertools.pairwise(hull)), default=0)
    assert allocation.gap <= widest + 1e-9


@given(INSTANCES)
def test_more_budget_never_loses_more(instance: list[list[Option]]) -> None:
    least = cheapest(instance)
    losses = [spend(hulls(instance), budget).loss for budget in range(least, least + 250, 7)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))


@given(choices())
def test_a_hull_lies_under_every_option_and_its_slopes_flatten(options: list[Option]) -> None:
    hull = lower_hull(options)
    slopes = [(b.loss - a.loss) / (b.cost - a.cost) for a, b in itertools.pairwise(hull)]
    assert all(a.cost < b.cost and a.loss > b.loss for a, b in itertools.pairwise(hull))
    assert slopes == sorted(slopes)
    for option in options:
        for a, b in itertools.pairwise(hull):
            if a.cost <= option.cost <= b.cost:
                line = a.loss + (b.loss - a.loss) * (option.cost - a.cost) / (b.cost - a.cost)
                assert option.loss >= line - 1e-9


def test_dropping_components_one_by_one_is_not_optimal_where_costs_differ() -> None:
    cheap = [Option(cost=0, loss=10, rank=0), Option(cost=1, loss=5.5, rank=1)]
    dear = [Option(cost=0, loss=10, rank=0), Option(cost=3, loss=4, rank=1), Option(cost=6, loss=1.5, rank=2)]
    assert spend({"a": cheap, "b": dear}, 4).ranks == {"a": 1, "b": 1}
    assert spend({"a": cheap, "b": dear}, 3).ranks == {"a": 1, "b": 0}  # by loss alone the dear one would go first


@pytest.mark.parametrize(("shape", "step"), [((512, 600), 16), ((511, 600), 8), ((3000, 256), 8)])
def test_options_are_multiples_from_the_floor_to_where_factors_stop_saving(shape: tuple[int, int], step: int) -> None:
    *ranks, dense = rank_options(falling(shape, 1.0, 0.9), 0.3)
    each, numbers = sum(shape), shape[0] * shape[1]
    assert (dense.rank, dense.cost, dense.loss) == (None, numbers, 0.0)
    assert all(option.rank % step == 0 and option.cost == option.rank * each < numbers for option in ranks)
    assert [b.rank - a.rank for a, b in itertools.pairwise(ranks)] == [step] * (len(ranks) - 1)
    assert ranks[0].cost <= 0.3 * numbers < ranks[0].cost + step * each
    assert ranks[-1].cost + step * each >= numbers


def test_a_floor_below_the_first_multiple_is_an_option_of_its_own() -> None:
    ranks = [option.rank for option in rank_options(falling((48, 64), 1.0, 0.9), 0.2)]
    assert ranks == [5, 8, 16, 24, None]


@given(
    st.lists(
        st.tuples(st.tuples(st.integers(8, 300), st.integers(8, 300)), st.floats(0.1, 100), st.floats(0.8, 0.999)),
        min_size=1,
        max_size=6,
    ),
    st.floats(0.3, 1),
)
def test_ranks_of_matrices_keep_the_budget_and_the_floor(
    given_: list[tuple[tuple[int, int], float, float]], keep: float
) -> None:
    matrices = {str(i): falling(*each) for i, each in enumerate(given_)}
    assume(all(int(keep * m.dense / (m.d_out + m.d_in)) >= 1 for m in matrices.values()))
    allocation = allocate_ranks(matrices, keep)
    stored = [
        m.dense if name not in allocation.ranks else allocation.ranks[name] * (m.d_out + m.d_in)
        for name, m in matrices.items()
    ]
    assert sum(stored) == allocation.cost <= keep * sum(m.dense for m in matrices.values())
    lost = sum(sum(matrices[name].energies[rank:]) for name, rank in allocation.ranks.items())
    assert allocation.loss == pytest.approx(lost, rel=1e-9, abs=1e-12)
    for name, rank in allocation.ranks.items():
        uniform = uniform_rank((matrices[name].d_out, matrices[name].d_in), keep)
        assert uniform is None or rank > 0.5 * uniform - 16


def test_keeping_everything_leaves_every_matrix_dense() -> None:
    matrices = {"a": falling((64, 48), 1.0, 0.9), "b": falling((96, 32), 5.0, 0.99)}
    allocation = allocate_ranks(matrices, 1.0)
    assert (allocation.ranks, allocation.loss, allocation.gap) == ({}, 0.0, 0.0)


def test_a_weight_moves_the_budget_to_its_matrix() -> None:
    matrices = {name: falling((128, 128), 1.0, 0.95) for name in "ab"}
    heavier = allocate_ranks(matrices, 0.5, {"b": 50.0}).ranks
    assert heavier["b"] > heavier["a"]
    assert allocate_ranks(matrices, 0.5, {"a": 3.0, "b": 3.0}).ranks == allocate_ranks(matrices, 0.5).ranks


def test_wrong_settings_are_refused_by_name() -> None:
    matrices = {"a": falling((64, 48), 1.0, 0.9)}
    for keep in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="keep: expected more than 0"):
            allocate_ranks(matrices, keep)
    with pytest.raises(UsageError, match="floor: expected 0 to 1, got 2"):
        allocate_ranks(matrices, 0.5, floor=2)
    with pytest.raises(UsageError, match="got b"):
        allocate_ranks(matrices, 0.5, {"b": 1.0})
    with pytest.raises(UsageError, match="a budget of at least 112 numbers, got 92"):
        allocate_ranks(matrices, 0.03)
