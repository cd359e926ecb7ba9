"""Which arm is better, and whether that can be said.

    d_i = nats of window i in an arm less those in the other, of one seed, averaged over seeds
    se^2 = se_windows^2 + se_seeds^2,   se_seeds = sd over seeds / sqrt(seeds)
    interval = mean +- t(freedom) se,   freedom = se^4 / (se_windows^4 / (windows - 1) + se_seeds^4 / (seeds - 1))

The first part is what other windows would change (evaluation/agreement.py), the second what other seeds would. A verdict needs
an interval without zero, all seeds on one side of it, and three of them. With one the interval holds the windows alone.
Source: Welch 1947, Biometrika 34, with Satterthwaite's degrees of freedom.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from puna.evaluation.agreement import added_nats, student_t
from puna.evaluation.perplexity import Likelihood
from puna.lab.arm_run import ArmRun

__all__ = ["FEWEST_SEEDS", "Comparison", "Verdict", "compare_arms"]

Verdict = Literal["better", "worse", "not distinguishable", "too few seeds", "diverged", "not comparable"]

FEWEST_SEEDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Nats per token of an arm less those of another; each seed's own, their mean and its 95 % interval; nan: none."""

    arm: str
    against: str
    by_seed: tuple[float, ...]
    added_nats: float
    low: float
    high: float
    verdict: Verdict


def compare_arms(mine: Sequence[ArmRun], others: Sequence[ArmRun]) -> Comparison:
    """Args: the runs of two arms, one a seed, in the order of the seeds; a seed counts where both have a model."""
    pairs = [(run, other) for run, other in zip(mine, others, strict=True) if run.window_nats and other.window_nats]
    named = {"arm": mine[0].arm, "against": others[0].arm}
    if len(pairs) < len(mine):
        verdict: Verdict = "diverged" if any(run.diverged for run in mine) else "not comparable"
        return Comparison(**named, by_seed=(), added_nats=math.nan, low=math.nan, high=math.nan, verdict=verdict)
    by_seed = tuple(added_nats(other.likelihood, run.likelihood).mean for run, other in pairs)
    found = added_nats(_mean([other for _, other in pairs]), _mean([run for run, _ in pairs]))
    reach = _reach(found.standard_error, len(pairs[0][0].window_nats), by_seed)
    low, high = found.mean - reach, found.mean + reach
    return Comparison(
        **named, by_seed=by_seed, added_nats=found.mean, low=low, high=high, verdict=_verdict(low, high, by_seed)
    )


def _reach(of_windows: float, windows: int, by_seed: Sequence[float]) -> float:
    """Half of the interval."""
    of_seeds = stdev(by_seed) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else 0.0
    whole = of_windows**2 + of_seeds**2
    if whole == 0:
        return 0.0
    freedom = whole**2 / (of_windows**4 / (windows - 1) + of_seeds**4 / max(1, len(by_seed) - 1))
    return student_t(freedom) * math.sqrt(whole)


def _mean(runs: Sequence[ArmRun]) -> Likelihood:
    """Each window's nats averaged over seeds."""
    first = runs[0].likelihood
    nats = tuple(fmean(each) for each in zip(*(run.window_nats for run in runs), strict=True))
    return Likelihood(
        window_nats=nats, window_tokens=first.window_tokens, bytes=None, characters=None, seconds=first.seconds
    )


def _verdict(low: float, high: float, by_seed: Sequence[float]) -> Verdict:
    if len(by_seed) < FEWEST_SEEDS:
        return "too few seeds"
    if high < 0 and all(each < 0 for each in by_seed):
        return "better"
    if low > 0 and all(each > 0 for each in by_seed):
        return "worse"
    return "not distinguishable"
