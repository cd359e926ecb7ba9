"""What `puna compress --frontier` found, and which of it is worth taking.

The rule: the smallest model whose added nats are, at the upper end of their 95 % interval, at most 0.05, which is 5 % more
perplexity. Where none is, nothing is recommended; the one that adds the fewest nats for each byte saved is named.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from puna.jobs.factoring import Allocation, Method
from puna.jobs.frontier_recipe import FrontierRecipe
from puna.report.labels import label
from puna.report.numbers import human_bytes, human_number, human_percent
from puna.training.config import TimeBudget

__all__ = [
    "LIMIT_NATS",
    "Ablated",
    "FrontierPoint",
    "FrontierResult",
    "Original",
    "cheapest",
    "command_for",
    "frontier_command",
    "frontier_rows",
    "nats_text",
    "recommend",
    "verdict",
]

LIMIT_NATS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """One way of making the model smaller; 95 % interval from low to high, paired over windows.

    keep: kept share of what the block Linears store; None for int8. share: kept share of the whole model's bytes.
    """

    method: str
    keep: float | None
    bytes: int
    share: float
    added_nats: float
    low: float
    high: float
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    ranks: dict[str, int]

    @property
    def name(self) -> str:
        """`auto 60 %`, `int8`."""
        return self.method if self.keep is None else f"{self.method} {human_percent(self.keep)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablated:
    """One lever more than the row before, at the same kept share.

    training: afterwards, of the factors; or of fresh weights of the same sizes.
    """

    method: Method
    allocation: Allocation
    training: Literal["none", "healing", "scratch"] = "none"
    keep: float
    added_nats: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The model that was given, on the same text and the same machine."""

    bytes: int
    nats_per_token: float
    decode_tokens_per_second: float
    prefill_tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierResult:
    """What `puna compress --frontier --json` prints; command: what makes the recommended model, or None with it."""

    original: Original
    frontier: list[FrontierPoint]
    recommended: FrontierPoint | None
    command: str | None
    ablation: list[Ablated]
    seconds: float
    peak_bytes: int
    report: str


def recommend(points: Sequence[FrontierPoint], original_bytes: int) -> FrontierPoint | None:
    """The smallest model that costs at most LIMIT_NATS for certain; of equal ones that which adds less."""
    within = [point for point in points if point.high <= LIMIT_NATS and point.bytes < original_bytes]
    return min(within, key=lambda point: (point.bytes, point.added_nats), default=None)


def cheapest(points: Sequence[FrontierPoint], original_bytes: int) -> FrontierPoint | None:
    """The smaller model that adds the fewest nats for each byte saved."""
    smaller = [point for point in points if point.bytes < original_bytes]
    return min(smaller, key=lambda point: point.added_nats / (original_bytes - point.bytes), default=None)


def command_for(recipe: FrontierRecipe, point: FrontierPoint, out: Path, lang: str = "en") -> str:
    """The `puna compress` command that writes this model beside the frontier's folder, and judges it by the same text.

    Args: lang: of the page that it writes.
    """
    place = out.with_name(f"{out.name}-{point.name.replace(' %', '').replace(' ', '-')}")
    words = ["puna", "compress", str(recipe.model), str(place), "--calibration", str(recipe.calibration)]
    if point.keep is None:
        words += ["--quantize", point.method]
    else:
        words += [*(() if point.method == "auto" else ("--method", point.method)), "--keep", f"{point.keep:g}"]
    if recipe.evaluate is not None:
        words += ["--evaluate", str(recipe.evaluate)]
    if lang != "en":
        words += ["--lang", lang]
    return shlex.join(words)


def frontier_command(recipe: FrontierRecipe, out: Path) -> str:
    """The command that compares again, and goes on with training that was stopped."""
    words = ["puna", "compress", str(recipe.model), str(out), "--frontier", "--calibration", str(recipe.calibration)]
    if recipe.method != "auto":
        words += ["--method", recipe.method]
    if (healing := recipe.healing) is not None and isinstance(healing.budget, TimeBudget):
        words += ["--batch", str(healing.batch), "--seq", str(healing.seq)]
        words += ["--learning-rate", f"{healing.learning_rate:g}", "--heal", f"{healing.budget.seconds:g}"]
    if recipe.evaluate is not None:
        words += ["--evaluate", str(recipe.evaluate)]
    return shlex.join(words)


def frontier_rows(result: FrontierResult, lang: str = "en") -> list[tuple[str, ...]]:
    """The result as lines for people: a head, then each with its size, added nats and speeds."""
    before = result.original
    head = tuple(label(lang, f"frontier.column.{name}") for name in ("name", "bytes", "added", "decode", "prefill"))
    rows = [head, (label(lang, "frontier.original"), human_bytes(before.bytes), "", *_speeds(before))]
    for point in result.frontier:
        added = label(
            lang, "run.added", mean=f"{point.added_nats:.4f}", low=f"{point.low:.4f}", high=f"{point.high:.4f}"
        )
        rows.append((point.name, human_bytes(point.bytes), added, *_speeds(point)))
    return rows


def nats_text(nats: float) -> str:
    """Added nats to four digits behind the point: none of them is known better."""
    text = f"{nats:.4f}"
    return "0.0000" if float(text) == 0 else text.replace("-", "−")


def verdict(result: FrontierResult, lang: str = "en") -> str:
    """What the rule says of it, in a sentence or two."""
    limit = f"{LIMIT_NATS:g}"
    best = result.recommended
    if best is not None:
        return label(lang, "frontier.verdict", limit=limit, **_said(best))
    near = cheapest(result.frontier, result.original.bytes)
    if near is None:
        return label(lang, "frontier.verdict_larger")
    return label(lang, "frontier.verdict_none", limit=limit, **_said(near))


def _said(point: FrontierPoint) -> dict[str, str]:
    return {
        "name": point.name,
        "share": human_percent(point.share),
        "bytes": human_bytes(point.bytes),
        "added": nats_text(point.added_nats),
        "high": nats_text(point.high),
    }


def _speeds(one: Original | FrontierPoint) -> tuple[str, str]:
    return human_number(one.decode_tokens_per_second), human_number(one.prefill_tokens_per_second)
