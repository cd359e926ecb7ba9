"""Ranks of many matrices under one budget of numbers: the exact greedy on convex hulls. No tensors.

    minimise  sum_l c_l tail_l(r_l)   subject to   sum_l cost_l(r_l) <= budget,  r_l from a few options or dense

A rank r of a (d_out, d_in) matrix costs r (d_out + d_in) numbers, dense costs d_out d_in and loses nothing. Of each
matrix's (cost, loss) options only the lower convex hull can be best for some price of a number; the hulls' segments are
bought by slope, the steepest first. Where a segment ends just at the budget the result is the best of all choices;
elsewhere a segment that does not fit is passed over, and the loss exceeds the best one's by at most `gap`.
Stacked members count as one matrix, d_out being the sum of theirs. docs/compression.md 1.5.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from puna.errors import UsageError

__all__ = ["Allocation", "Matrix", "Option", "allocate_ranks", "check_keep", "lower_hull", "rank_options", "spend"]

_STEP, _SMALL_STEP, _SMALL = 16, 8, 512
_FLOOR = 0.5  # of the uniform rank: without a floor allocation is worse than uniform (arXiv:2604.01609)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix and what leaving out each of its components costs, the most valuable first."""

    d_out: int
    d_in: int
    energies: Sequence[float]

    @property
    def dense(self) -> int:
        """Numbers that the matrix itself stores."""
        return self.d_out * self.d_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A rank, or None for dense, with the numbers it stores and the loss it leaves."""

    cost: int
    loss: float
    rank: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Ranks by name (absent: dense), the numbers they store, the loss they leave, and how far from the best at most."""

    ranks: dict[str, int]
    cost: int
    loss: float
    gap: float


def allocate_ranks(
    matrices: Mapping[str, Matrix], keep: float, weights: Mapping[str, float] | None = None, *, floor: float = _FLOOR
) -> Allocation:
    """The ranks of least summed loss that store at most `keep` of all the matrices' numbers.

    Args:   weights: c_l by name, from `reference_costs`; 1 where absent.
            floor: the least rank of each, as a share of what it would have at the same share everywhere.
    Errors: UsageError: keep or floor outside its range; a weight's name that is no matrix; no choice fits the budget.
    """
    check_keep(keep)
    if not 0 <= floor <= 1:
        raise UsageError(f"floor: expected 0 to 1, got {floor}", "0.5 is half of the uniform rank")
    weights = {} if weights is None else weights
    if unknown := sorted(weights.keys() - matrices.keys()):
        raise UsageError(f"weights: expected names of matrices, got {unknown[0]}", f"there are {len(matrices)} names")
    hulls = {
        name: lower_hull(rank_options(matrix, keep * floor, weights.get(name, 1.0)))
        for name, matrix in matrices.items()
    }
    return spend(hulls, int(keep * sum(matrix.dense for matrix in matrices.values())))


def check_keep(keep: float) -> None:
    """Errors: UsageError: a kept share outside 0 < keep <= 1."""
    if not 0 < keep <= 1:
        raise UsageError(f"keep: expected more than 0 and at most 1, got {keep}", "0.8 keeps 80 % of the stored bits")


def rank_options(matrix: Matrix, least: float, weight: float = 1.0) -> list[Option]:
    """What a matrix may become, the cheapest first, and dense the last.

    Ranks are multiples of 16, of 8 where the smaller side is below 512, from that which stores the share `least` of the
    dense matrix (itself rounded down to a multiple where it reaches one) up to where factors stop saving.
    """
    each, tails = matrix.d_out + matrix.d_in, _tails(matrix.energies)
    step = _SMALL_STEP if min(matrix.d_out, matrix.d_in) < _SMALL else _STEP
    start = max(1, int(least * matrix.dense / each))
    if start >= step:
        start -= start % step
    ranks = [start, *range((start // step + 1) * step, matrix.dense // each + 1, step)]
    options = [
        Option(cost=rank * each, loss=weight * tails[rank], rank=rank) for rank in ranks if rank * each < matrix.dense
    ]
    return [*options, Option(cost=matrix.dense, loss=0.0, rank=None)]


def lower_hull(options: Sequence[Option]) -> list[Option]:
    """The options that are best for some price of a number: costs rise, losses fall, ever less for each number."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda each: (each.cost, each.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def spend(hulls: Mapping[str, Sequence[Option]], budget: int) -> Allocation:
    """Start every hull at its cheapest option and buy segments by slope.

    Errors: UsageError: the cheapest options already store more than the budget.
    """
    chosen = {name: hull[0] for name, hull in hulls.items()}
    cost, loss = sum(option.cost for option in chosen.values()), sum(option.loss for option in chosen.values())
    if cost > budget:
        raise UsageError(f"keep: expected a budget of at least {cost} numbers, got {budget}", "keep more")
    bound: float | None = None
    for gain, name, before, after in sorted(_segments(hulls), key=lambda segment: -segment[0]):
        if cost + after.cost - before.cost > budget and bound is None:
            bound = loss - gain * (budget - cost)  # as if a part of the segment could be bought: none does better
        if chosen[name] is before and cost + after.cost - before.cost <= budget:
            chosen[name] = after
            cost, loss = cost + after.cost - before.cost, loss + after.loss - before.loss
    total = sum(option.loss for option in chosen.values())  # running differences would leave their rounding behind
    ranks = {name: option.rank for name, option in chosen.items() if option.rank is not None}
    return Allocation(ranks=ranks, cost=cost, loss=total, gap=0.0 if bound is None else max(0.0, total - bound))


def _segments(hulls: Mapping[str, Sequence[Option]]) -> Iterator[tuple[float, str, Option, Option]]:
    """(loss saved for each number, name, from, to) of every step along every hull."""
    for name, hull in hulls.items():
        for before, after in pairwise(hull):
            yield _gain(before, after), name, before, after


def _gain(before: Option, after: Option) -> float:
    return (before.loss - after.loss) / (after.cost - before.cost)


def _tails(energies: Sequence[float]) -> list[float]:
    """What rank r leaves out, for r = 0 to K; summed from the smallest."""
    return list(accumulate(reversed(energies), initial=0.0))[::-1]
