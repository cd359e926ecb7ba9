"""How the sources of a run share it, and what that means in tokens and epochs.

    share of tokens:  w_i / sum w, given; or tokens_i^a / sum tokens^a; or UniMax;  then at most `epoch_cap` epochs of each

The mathematics is text/mixture.py's. Rows are served, tokens are wanted: a source whose rows hold padding serves more rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from puna.errors import UsageError
from puna.text.mixture import Mixture, cap_epochs, epochs, exponent_weights, integer_weights, unimax_weights
from puna.training.config import TrainingConfig
from puna.training.rows import Rows

__all__ = ["MANY_EPOCHS", "Mixing", "MixtureRule", "SourceShare", "mix"]

_WHOLE, _MOST_WHOLE = 1 << 16, 1 << 24  # the sum of weights: finer where a tiny source would be read above its cap
MANY_EPOCHS = 4  # Muennighoff et al. 2023, arXiv:2305.16264: up to here a second reading is worth nearly a first one


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureRule:
    """How sources without weights of their own share the tokens.

    rule:      proportional: by tokens^exponent, 1 as they are and 0 all alike; unimax: as alike as `epoch_cap` allows.
    epoch_cap: no source is read more often; the others take what it leaves, in proportion.
    """

    rule: Literal["proportional", "unimax"] = "proportional"
    exponent: float = 1.0
    epoch_cap: float | None = None

    def __post_init__(self) -> None:
        if self.epoch_cap is not None and not self.epoch_cap > 0:
            raise UsageError(f"mixture.epoch_cap: expected more than 0, got {self.epoch_cap}", "4 is usual")
        if not 0 <= self.exponent <= 1:
            raise UsageError(
                f"mixture.exponent: expected 0 to 1, got {self.exponent}", "1 is in proportion to tokens, 0 all alike"
            )
        if self.rule == "unimax" and (self.epoch_cap is None or self.exponent != 1):
            raise UsageError("mixture.rule = unimax: expected an epoch_cap and no exponent", "mixture.epoch_cap=4")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShare:
    """One source: what there is to learn, its share of what is learned, how much of it that is, and how often."""

    name: str
    tokens: int
    share: float
    learned: float
    epochs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """Sources in rows, and how many of every sum(weights) rows each serves."""

    names: tuple[str, ...]
    rows: tuple[Rows, ...]
    weights: tuple[int, ...]

    @property
    def mixture(self) -> Mixture:
        """The exact schedule."""
        return Mixture(weights=self.weights)

    def planned(self, config: TrainingConfig) -> tuple[SourceShare, ...] | None:
        """What a whole run will read; None where the clock decides."""
        tokens = _tokens(config, sum(self._densities()) / sum(self.weights))
        return None if tokens is None else self._shares([tokens * share for share in self.shares()])

    def read(self, rows: int, config: TrainingConfig) -> tuple[SourceShare, ...]:
        """What the first so many rows of a run held."""
        served = self.mixture.counts(rows)
        return self._shares(
            [count * config.seq * (1 - each.padding) for count, each in zip(served, self.rows, strict=True)]
        )

    def shares(self) -> tuple[float, ...]:
        """Of the tokens that are learned."""
        densities = self._densities()
        return tuple(each / sum(densities) for each in densities)

    def _densities(self) -> list[float]:
        """Rows' worth of tokens that each source gives in sum(weights) rows."""
        return [weight * (1 - each.padding) for weight, each in zip(self.weights, self.rows, strict=True)]

    def _shares(self, learned: Sequence[float]) -> tuple[SourceShare, ...]:
        total, sizes = sum(learned), [each.tokens for each in self.rows]
        shares = [each / total if total else 0.0 for each in learned]
        often = epochs(shares, sizes, total)
        return tuple(
            SourceShare(name=name, tokens=size, share=share, learned=count, epochs=times)
            for name, size, share, count, times in zip(self.names, sizes, shares, learned, often, strict=True)
        )


def mix(
    names: Sequence[str],
    rows: Sequence[Rows],
    given: Sequence[float | None],
    rule: MixtureRule,
    config: TrainingConfig,
) -> Mixing:
    """Decide how often each source serves a row; every source that is named is read.

    Args:   given: the weight of each source; all None: by the rule.
    Errors: UsageError for weights that are not all there, not above 0, or set beside a rule; for a cap that the run's
            budget is beyond, or under a budget in seconds.
    """
    sizes = [each.tokens for each in rows]
    shares = _wanted(names, sizes, given, rule)
    if rule.epoch_cap is not None:
        budget = _tokens(config, 1 / sum(_served(shares, rows)))
        if budget is None:
            raise UsageError(
                "mixture.epoch_cap: expected a budget in steps or tokens, got seconds", "give --steps or --tokens"
            )
        if rule.rule == "unimax":
            shares = unimax_weights(sizes, budget, rule.epoch_cap)
        else:
            shares = cap_epochs(shares, sizes, budget, rule.epoch_cap)
    served, total = _served(shares, rows), _WHOLE
    while True:
        whole = tuple(max(1, weight) for weight in integer_weights(served, total))
        mixing = Mixing(names=tuple(names), rows=tuple(rows), weights=whole)
        above = _above(mixing, rule.epoch_cap, config)
        if above is None:
            return mixing
        if total == _MOST_WHOLE:
            raise UsageError(
                f"{above.name}: expected at most {rule.epoch_cap} epochs, got {above.epochs:.2f}: no weight is small enough",
                "leave it out, or put it into one source with others",
            )
        total *= 4


def _above(mixing: Mixing, cap: float | None, config: TrainingConfig) -> SourceShare | None:
    """A source that whole weights let be read above its cap, by more than a row and 1 %."""
    if cap is None:
        return None
    for each in mixing.planned(config) or ():
        most = cap * each.tokens
        if each.learned - most > max(config.seq, most / 100):
            return each
    return None


def _wanted(
    names: Sequence[str], sizes: Sequence[int], given: Sequence[float | None], rule: MixtureRule
) -> tuple[float, ...]:
    """The share of each source before any cap."""
    weights = [weight for weight in given if weight is not None]
    if not weights:
        return exponent_weights(sizes, rule.exponent)
    for name, weight in zip(names, given, strict=True):
        if weight is None:
            raise UsageError(
                f"--data {name}: expected a weight for every source or for none", "--data a:0.7 --data b:0.3"
            )
        if not 0 < weight < math.inf:
            raise UsageError(
                f"--data {name}: expected a weight above 0, got {weight:g}", "leave out a source that is not to be read"
            )
    if rule.exponent != 1 or rule.rule == "unimax":
        raise UsageError(
            "mixture: expected weights at the sources or a rule, got both", "leave out the weights, or mixture.exponent"
        )
    return tuple(weight / sum(weights) for weight in weights)


def _served(shares: Sequence[float], rows: Sequence[Rows]) -> list[float]:
    """Rows that each source must serve for its share of one row's worth of tokens."""
    return [share / (1 - each.padding) for share, each in zip(shares, rows, strict=True)]


def _tokens(config: TrainingConfig, filled: float) -> float | None:
    """Tokens that a run learns; None where the clock decides. Args: filled: the share of its inputs that hold a token."""
    return config.budget.in_tokens(config.batch * config.seq * filled)
