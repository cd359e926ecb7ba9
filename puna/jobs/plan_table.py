"""The tables of `puna plan` for people, as text cells: models side by side, and what fits on which card."""

from collections.abc import Callable, Sequence

from puna.jobs.plan import PlanResult
from puna.planning.fit import Attempt
from puna.planning.hardware import UTILISATION
from puna.report.numbers import human_bytes, human_count, human_seconds

__all__ = ["card_rows", "memory_bars", "plan_rows"]

_BAR_WIDTH = 60

Show = Callable[[PlanResult], str]


def plan_rows(plans: Sequence[PlanResult]) -> list[tuple[str, tuple[str, ...]]]:
    """A label, and one cell for each model. Rows that are empty for every model are left out."""
    rows = [(label, tuple(show(result) for result in plans)) for label, show in (*_TRAITS, *_COUNTS, *_BYTES, *_END)]
    return [(label, cells) for label, cells in rows if any(cells)]


def memory_bars(result: PlanResult) -> list[str]:
    """Each term of the peak as a line with a bar in proportion, at most 100 characters wide."""
    terms = [(label, getattr(result.bytes, name)) for label, name in _TERMS]
    shown = [(label, size) for label, size in terms if size]
    sizes = [human_bytes(size) for _, size in shown]
    left, middle, total = max(len(label) for label, _ in shown), max(map(len, sizes)), result.bytes.total
    return [
        f"{label:<{left}}  {words:>{middle}}  {size / total:4.0%}  {_bar(size, total)}"
        for (label, size), words in zip(shown, sizes, strict=True)
    ]


def _bar(size: int, total: int) -> str:
    """At least one character, so that no term is overlooked; the peak itself has the full width."""
    return "#" * max(1, round(_BAR_WIDTH * size / total))


def card_rows(result: PlanResult) -> list[tuple[str, ...]]:
    """Header first: card, memory, whether it fits, what must change for that, the peak, time per million tokens."""
    limit = "bandwidth" if result.settings.train is None else f"{UTILISATION:.0%} of peak"
    rows: list[tuple[str, ...]] = [("card", "memory", "fits", "changed", "peak", f"1M tokens, {limit}")]
    for line in result.cards or ():
        seconds = line.seconds_per_million_tokens
        rows.append(
            (
                line.card,
                _both(line.memory_bytes),
                "yes" if line.fits else "no, least:",
                ", ".join(line.changed) or "as asked",
                _both(line.total_bytes),
                "" if seconds is None else human_seconds(seconds),
            )
        )
    return rows


def _traits(name: str, show: Callable[[object], str] = str) -> Show:
    def cell(result: PlanResult) -> str:
        value = getattr(result.traits, name)
        return "" if value is None else show(value)

    return cell


def _bytes(name: str) -> Show:
    def cell(result: PlanResult) -> str:
        size = getattr(result.bytes, name)
        return _both(size) if size else ""

    return cell


def _settings(result: PlanResult) -> str:
    chosen = result.settings
    words = [chosen.train or "inference", f"base {chosen.base}", f"{chosen.batch} x {chosen.seq} tokens"]
    if chosen.train is not None:
        words += ["checkpointing"] * chosen.checkpointing + [f"{chosen.loss} loss"]
    if chosen.streamed_layers:
        words.append(f"{chosen.streamed_layers} layers streamed")
    return ", ".join(words)


def _fits(result: PlanResult) -> str:
    if result.fits is None:
        return ""
    if not result.fits:
        return f"no: the smallest that would do is {_both(result.bytes.total)}"
    return "yes" + (f" with {', '.join(result.changed)}" if result.changed else "")


def _why(result: PlanResult) -> str:
    """The steps of the search, in words."""
    if result.memory_bytes is None:
        return ""
    return "; ".join(_attempt_words(attempt) for attempt in result.tried)


def _instead(result: PlanResult) -> str:
    return "; ".join(_attempt_words(attempt) for attempt in result.instead)


def _attempt_words(attempt: Attempt) -> str:
    words = f"{', '.join(attempt.changed) or 'as asked'} needs {human_bytes(attempt.total_bytes)}"
    if attempt.bus_bytes_per_step:
        words += f" and copies {human_bytes(attempt.bus_bytes_per_step)} over the bus a step"
    return words + (": fits" if attempt.fits else ": too much")


_TRAITS: tuple[tuple[str, Show], ...] = (
    ("generation", _traits("generation")),
    ("tokenizer", _traits("tokenizer")),
    ("vocabulary", _traits("vocabulary", "{:,}".format)),
    ("heads", _traits("heads")),
    ("kv heads", _traits("kv_heads")),
    ("ffn", _traits("ffn", "{:,}".format)),
    ("rope base", _traits("rope_base", "{:,.0f}".format)),
    ("context", _traits("context", "{:,}".format)),
    ("exchanged", lambda result: ", ".join(result.traits.exchanged)),
    ("training tokens", _traits("training_tokens", lambda count: human_count(float(str(count))))),
)
_COUNTS: tuple[tuple[str, Show], ...] = (
    ("parameters", lambda result: f"{result.parameters:,}"),
    ("embedding + head", lambda result: f"{result.embedding_parameters + result.head_parameters:,}"),
    (
        "LoRA",
        lambda result: f"{result.lora.parameters:,} ({result.lora.percent:.4f} %) at rank {result.lora.rank}",
    ),
    ("frozen beside it", lambda result: f"{result.lora.frozen:,}" if result.lora.frozen else ""),
    ("trained", lambda result: f"{result.trainable_parameters:,}" if result.trainable_parameters else ""),
    ("cache per token", lambda result: f"{result.kv_cache_bytes_per_token:,} B"),
    ("FLOPs per token, forward", lambda result: human_count(result.flops.forward_per_token)),
    ("FLOPs per token, training", lambda result: human_count(result.flops.train_per_token)),
    ("seconds a step, here", lambda result: human_seconds(result.seconds_per_step) if result.seconds_per_step else ""),
    ("settings", _settings),
)
_TERMS = (
    ("weights", "weights"),
    ("adapters", "adapters"),
    ("gradients", "gradients"),
    ("optimizer", "optimizer"),
    ("key-value cache", "kv_cache"),
    ("activations", "activations"),
    ("logits", "logits"),
    ("runtime", "runtime"),
    ("peak", "total"),
)
_BYTES: tuple[tuple[str, Show], ...] = tuple((label, _bytes(name)) for label, name in _TERMS)
_END: tuple[tuple[str, Show], ...] = (("fits", _fits), ("because", _why), ("instead", _instead))


def _both(size: int) -> str:
    """Bytes in powers of 1000 and of 1024: cards are sold by the first and filled by the second; two digits decide what fits."""
    power, decimal, binary = (3, "GB", "GiB") if size >= 10**9 else (2, "MB", "MiB")
    return f"{size / 1000**power:,.2f} {decimal} ({size / 1024**power:,.2f} {binary})"
