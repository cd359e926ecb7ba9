"""Settings that fit a memory: as wanted if they do, else the first that do in order of what they cost the user.

For the wanted batch and length: nothing changed, then a chunked loss (free), then checkpointing (time), then a smaller
base (precision); after that a smaller batch, then shorter sequences, with the same order within each.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product

from puna.arch.config import ModelConfig
from puna.planning.compute import training_flops
from puna.planning.hardware import CARDS, FLOAT32_SHARE, Card, compute_seconds, decode_seconds
from puna.planning.memory import Memory, peak_memory
from puna.planning.settings import BASES, FullTraining, Inference, Settings

__all__ = ["CardFit", "Fit", "fit_cards", "fit_memory"]

SHORTEST_SEQ = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The settings found and their peak; where nothing fits, those of the smallest memory that would do.

    `changed` names each setting that differs from the wanted one, as `base: bfloat16 -> nf4`.
    """

    fits: bool
    settings: Settings
    memory: Memory
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFit:
    """One line of the table of cards.

    `seconds_per_million_tokens`: trained, limited by arithmetic, or generated, limited by bandwidth; None: it does not fit.
    """

    card: str
    memory_bytes: int
    fits: bool
    total_bytes: int
    changed: tuple[str, ...]
    seconds_per_million_tokens: float | None


def fit_memory(config: ModelConfig, wanted: Settings, memory_bytes: int) -> Fit:
    """The first settings whose peak is within `memory_bytes`, or the smallest peak there is."""
    peaks = [(settings, peak_memory(config, settings)) for settings in _candidates(wanted)]
    fitting = (peak for peak in peaks if peak[1].total <= memory_bytes)
    settings, memory = next(fitting, min(peaks, key=lambda peak: peak[1].total))
    return Fit(fits=memory.total <= memory_bytes, settings=settings, memory=memory, changed=_changes(wanted, settings))


def fit_cards(config: ModelConfig, wanted: Settings) -> tuple[CardFit, ...]:
    """What fits on each common card, how, and how long a million tokens take there."""
    return tuple(_fit_card(config, wanted, card) for card in CARDS)


def _fit_card(config: ModelConfig, wanted: Settings, card: Card) -> CardFit:
    found = fit_memory(config, wanted, card.memory_bytes)
    return CardFit(
        card=card.name,
        memory_bytes=card.memory_bytes,
        fits=found.fits,
        total_bytes=found.memory.total,
        changed=found.changed,
        seconds_per_million_tokens=1e6 * _seconds_per_token(config, found, card) if found.fits else None,
    )


def _seconds_per_token(config: ModelConfig, found: Fit, card: Card) -> float:
    if isinstance(found.settings.method, Inference):
        return decode_seconds(card, found.memory.weights, found.memory.kv_cache, found.settings.batch)
    share = FLOAT32_SHARE if found.settings.base == "float32" else 1.0
    return compute_seconds(card, training_flops(config, found.settings)) / share / found.settings.tokens


def _candidates(wanted: Settings) -> Iterator[Settings]:
    trains = not isinstance(wanted.method, Inference)
    bases = (wanted.base,) if isinstance(wanted.method, FullTraining) else BASES[BASES.index(wanted.base) :]
    checkpointing = sorted({wanted.checkpointing, trains or wanted.checkpointing})
    losses = dict.fromkeys((wanted.loss, "chunked")) if trains else (wanted.loss,)
    for batch, seq in _workloads(wanted):
        for base, recompute, loss in product(bases, checkpointing, losses):
            yield replace(wanted, batch=batch, seq=seq, base=base, checkpointing=recompute, loss=loss)


def _workloads(wanted: Settings) -> Iterator[tuple[int, int]]:
    """(batch, seq) as wanted, then the batch halved down to 1, then the length down to SHORTEST_SEQ."""
    batch, seq = wanted.batch, wanted.seq
    yield batch, seq
    while batch > 1:
        batch //= 2
        yield batch, seq
    while seq // 2 >= SHORTEST_SEQ:
        seq //= 2
        yield batch, seq


def _changes(wanted: Settings, found: Settings) -> tuple[str, ...]:
    pairs = ((item.name, getattr(wanted, item.name), getattr(found, item.name)) for item in fields(wanted))
    return tuple(f"{name}: {_word(old)} -> {_word(new)}" for name, old, new in pairs if old != new)


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
