"""Settings that fit a memory: as wanted if they do, else the first that do in order of what they cost the user.

For the wanted batch and length: nothing changed, then a chunked loss (free), then checkpointing (time), then for an
adapter as few frozen layers streamed from host memory as it takes (time, on the bus), then a smaller base (precision);
after that a smaller batch, then shorter sequences, with the same order within each.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product

from puna.arch.config import ModelConfig
from puna.arch.modules import EMBEDDING
from puna.planning.compute import training_flops
from puna.planning.hardware import CARDS, FLOAT32_SHARE, Card, compute_seconds, decode_seconds
from puna.planning.memory import STREAM_BUFFERS, Memory, bus_bytes_per_step, peak_memory
from puna.planning.settings import BASES, Base, FullTraining, Inference, LoraTraining, Settings

__all__ = ["Attempt", "CardFit", "Fit", "fit_cards", "fit_memory"]

SHORTEST_SEQ = 256
_FOLLOW_FROM_BASE = ("autocast", "is_wide")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One step of the search: what it would change, its peak, and what it copies over the bus at each training step."""

    changed: tuple[str, ...]
    total_bytes: int
    fits: bool
    bus_bytes_per_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The settings found and their peak; where nothing fits, those of the smallest memory that would do.

    `changed` names each setting that differs from the wanted one, as `base: bfloat16 -> nf4`. `tried` are the steps of
    the search at the batch and length found, the last of them the chosen; `instead` is the first that fits of each
    smaller base.
    """

    fits: bool
    settings: Settings
    memory: Memory
    changed: tuple[str, ...]
    tried: tuple[Attempt, ...] = ()
    instead: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFit:
    """One line of the table of cards.

    `seconds_per_million_tokens`: trained, limited by arithmetic or by what streaming copies meanwhile, or generated,
    limited by bandwidth; None: it does not fit.
    """

    card: str
    memory_bytes: int
    fits: bool
    total_bytes: int
    changed: tuple[str, ...]
    seconds_per_million_tokens: float | None


def fit_memory(config: ModelConfig, wanted: Settings, memory_bytes: int, *, streams: bool = True) -> Fit:
    """The first settings whose peak is within `memory_bytes`, or the smallest peak there is.

    Args: streams: whether frozen layers may be streamed from a host's memory, which is none of these bytes.
    """
    smallest: tuple[Settings, Memory] | None = None
    for batch, seq in _workloads(wanted):
        tried: list[Settings] = []
        steps = _steps(config, replace(wanted, batch=batch, seq=seq), memory_bytes, streams=streams)
        for settings in steps:
            memory = peak_memory(config, settings)
            tried.append(settings)
            if memory.total <= memory_bytes:
                return _found(config, wanted, memory_bytes, tried, list(steps))
            if smallest is None or memory.total < smallest[1].total:
                smallest = settings, memory
    assert smallest is not None, "there is always the wish itself"
    settings, memory = smallest
    workload = replace(wanted, batch=settings.batch, seq=settings.seq)
    tried_there = list(_steps(config, workload, memory_bytes, streams=streams))
    attempts = tuple(_attempt(config, wanted, each, memory_bytes) for each in tried_there)
    return Fit(fits=False, settings=settings, memory=memory, changed=_changes(wanted, settings, config), tried=attempts)


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
    seconds = compute_seconds(card, training_flops(config, found.settings)) / share
    bus = bus_bytes_per_step(config, found.settings) / card.bus_bytes_per_second
    return max(seconds, bus) / found.settings.tokens


def _found(
    config: ModelConfig, wanted: Settings, memory_bytes: int, tried: list[Settings], rest: list[Settings]
) -> Fit:
    """The answer where the last of `tried` fits. Args: rest: the steps after it."""
    chosen = tried[-1]
    instead: dict[str, Settings] = {}
    for settings in rest:
        if settings.base != chosen.base and peak_memory(config, settings).total <= memory_bytes:
            instead.setdefault(settings.base, settings)
    return Fit(
        fits=True,
        settings=chosen,
        memory=peak_memory(config, chosen),
        changed=_changes(wanted, chosen, config),
        tried=tuple(_attempt(config, wanted, each, memory_bytes) for each in tried),
        instead=tuple(_attempt(config, wanted, each, memory_bytes) for each in instead.values()),
    )


def _attempt(config: ModelConfig, wanted: Settings, settings: Settings, memory_bytes: int) -> Attempt:
    total = peak_memory(config, settings).total
    return Attempt(
        changed=_changes(wanted, settings, config),
        total_bytes=total,
        fits=total <= memory_bytes,
        bus_bytes_per_step=bus_bytes_per_step(config, settings),
    )


def _steps(config: ModelConfig, workload: Settings, memory_bytes: int, *, streams: bool) -> Iterator[Settings]:
    """What is tried at one batch and length, in order."""
    trains = not isinstance(workload.method, Inference)
    is_full = isinstance(workload.method, FullTraining)
    checkpointing = sorted({workload.checkpointing, trains or workload.checkpointing})
    losses = dict.fromkeys((workload.loss, "chunked")) if trains else (workload.loss,)
    for base in (workload.base,) if is_full else BASES[BASES.index(workload.base) :]:
        based = _on_base(workload, base)
        for recompute, loss in product(checkpointing, losses):
            yield replace(based, checkpointing=recompute, loss=loss)
        if streams and isinstance(workload.method, LoraTraining):
            yield _streamed(config, replace(based, checkpointing=True, loss="chunked"), memory_bytes)


def _on_base(workload: Settings, base: Base) -> Settings:
    """The same on a smaller base: its products need no cast, and our own loop's stream stays as wide as it was."""
    if base == workload.base:
        return workload
    is_wide = workload.own_loop and workload.product_bytes == 4
    return replace(workload, base=base, autocast=False, is_wide=is_wide, integer_products=False)


def _streamed(config: ModelConfig, resident: Settings, memory_bytes: int) -> Settings:
    """The embedding in host memory, and as few streamed layers as fit, or all."""
    assert isinstance(resident.method, LoraTraining), "only frozen layers are streamed"
    settings = resident
    is_dense = resident.compressed is None or not resident.compressed.is_table_factored
    if is_dense and not config.tied_embeddings and EMBEDDING not in resident.method.targets:
        settings = replace(settings, streamed_embedding=True)
    for layers in (resident.streamed_layers, *range(STREAM_BUFFERS + 1, config.n_layers + 1)):
        settings = replace(settings, streamed_layers=max(layers, resident.streamed_layers))
        if peak_memory(config, settings).total <= memory_bytes:
            break
    return settings


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


def _changes(wanted: Settings, found: Settings, config: ModelConfig) -> tuple[str, ...]:
    names = [item.name for item in fields(wanted) if item.name not in _FOLLOW_FROM_BASE]
    pairs = {name: (getattr(wanted, name), getattr(found, name)) for name in names}
    words = {name: f"{name}: {_word(old)} -> {_word(new)}" for name, (old, new) in pairs.items() if old != new}
    if "streamed_layers" in words:
        words["streamed_layers"] = f"streamed layers: {found.streamed_layers} of {config.n_layers}"
    if "streamed_embedding" in words:
        words["streamed_embedding"] = "embedding: in host memory"
    return tuple(words.values())


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
