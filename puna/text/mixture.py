"""Which source serves the next window: w_i = f_i^a / sum_j f_j^a, epoch caps, and an exact scheduler.

The scheduler is the deadline form of the quota method: at step t = 1, 2, ..., with n_i served so far and integer weights
W_i of sum W, the sources with n_i W < t W_i compete and the smallest (n_i + 1) / W_i is served, ties to the lowest index.
Then |n_i - t W_i / W| < 1 at every step, and the order is a function of the weights alone.

Sources: Balinski & Young 1975; XLM, arXiv:1901.07291; mT5, arXiv:2010.11934; UniMax, arXiv:2304.09151.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from puna.errors import UsageError

__all__ = ["Mixture", "cap_epochs", "epochs", "exponent_weights", "integer_weights", "unimax_weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Sources in proportion to integer weights; iterating serves them one after the other, without end."""

    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) < 0 or sum(self.weights) == 0:
            raise UsageError(
                f"mixture weights: expected whole numbers, none negative, not all 0, got {self.weights}",
                "give each source a weight, for example 3 and 1",
            )

    def __iter__(self) -> Iterator[int]:
        total = sum(self.weights)
        live = [index for index, weight in enumerate(self.weights) if weight]
        served = [0] * len(self.weights)
        step = 0
        while True:
            step += 1
            best = -1
            for i in live:
                if served[i] * total < step * self.weights[i] and (
                    best < 0 or (served[i] + 1) * self.weights[best] < (served[best] + 1) * self.weights[i]
                ):
                    best = i
            served[best] += 1
            yield best

    def schedule(self, steps: int) -> list[int]:
        """The sources of the first `steps` steps."""
        return list(islice(self, steps))

    def source_at(self, step: int) -> int:
        """The source of one step, counted from 0. Walks the schedule, which repeats after sum(weights) steps."""
        return next(islice(self, step % sum(self.weights), None))

    def counts(self, steps: int) -> tuple[int, ...]:
        """How often each source is served in the first `steps` steps: where a resumed run goes on reading."""
        rounds, rest = divmod(steps, sum(self.weights))
        served = Counter(self.schedule(rest))
        return tuple(rounds * weight + served[index] for index, weight in enumerate(self.weights))


def exponent_weights(sizes: Sequence[float], exponent: float) -> tuple[float, ...]:
    """w_i = f_i^a / sum_j f_j^a: a = 1 in proportion to size, a = 0 all alike.

    Errors: UsageError for a size that is not positive.
    """
    _check_sizes(sizes)
    largest = max(sizes)  # scaled first: no overflow for any exponent
    powers = [(size / largest) ** exponent for size in sizes]
    return tuple(power / sum(powers) for power in powers)


def epochs(weights: Sequence[float], sizes: Sequence[float], budget: float) -> tuple[float, ...]:
    """e_i = budget * w_i / size_i: how often a run of `budget` tokens reads each source of `size_i` tokens."""
    return tuple(budget * weight / size for weight, size in zip(weights, sizes, strict=True))


def cap_epochs(weights: Sequence[float], sizes: Sequence[float], budget: float, cap: float) -> tuple[float, ...]:
    """Clip budget * w_i to cap * size_i, hand the excess to the others in proportion to w, and repeat.

    Errors: UsageError where the budget is more than `cap` epochs of everything.
    """
    free = [index for index, weight in enumerate(weights) if weight > 0]
    _check_cap([sizes[i] for i in free], budget, cap)
    tokens = [0.0] * len(sizes)
    left = budget
    while free:
        share = left / sum(weights[i] for i in free)
        full = [i for i in free if weights[i] * share > cap * sizes[i]]
        for i in full or free:
            tokens[i] = cap * sizes[i] if full else weights[i] * share
        left -= sum(tokens[i] for i in full)
        free = [i for i in free if full and i not in full]
    return tuple(count / budget for count in tokens)


def unimax_weights(sizes: Sequence[float], budget: float, cap: float) -> tuple[float, ...]:
    """As even as `cap` epochs allow: by ascending size each source takes min(remaining / left, cap * size_i).

    Errors: UsageError where the budget is more than `cap` epochs of everything.
    """
    _check_cap(sizes, budget, cap)
    tokens = [0.0] * len(sizes)
    remaining = budget
    ascending = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    for place, i in enumerate(ascending):
        tokens[i] = min(remaining / (len(sizes) - place), cap * sizes[i])
        remaining -= tokens[i]
    return tuple(count / budget for count in tokens)


def integer_weights(weights: Sequence[float], total: int = 1 << 16) -> tuple[int, ...]:
    """Whole numbers of sum `total` in proportion to `weights` (largest remainder, ties to the lowest index)."""
    exact = [Fraction(weight) for weight in weights]
    quotas = [total * weight / sum(exact) for weight in exact]
    whole = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: (whole[i] - quotas[i], i))
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return tuple(whole)


def _check_sizes(sizes: Sequence[float]) -> None:
    if not sizes or min(sizes) <= 0:
        raise UsageError(f"source sizes: expected positive numbers, got {tuple(sizes)}", "leave out empty sources")


def _check_cap(sizes: Sequence[float], budget: float, cap: float) -> None:
    _check_sizes(sizes)
    if budget > cap * sum(sizes):
        raise UsageError(
            f"{budget:,.0f} tokens are more than {cap:g} epochs of {sum(sizes):,.0f}",
            f"train on at most {cap * sum(sizes):,.0f} tokens, raise the cap, or add text",
        )
