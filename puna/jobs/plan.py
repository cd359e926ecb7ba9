"""`puna plan`: what a model costs before anything is loaded. Imports no torch, so it answers at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from puna.arch.config import ModelConfig
from puna.arch.modules import match_linears
from puna.arch.presets import PRESETS, Generation, find_preset
from puna.errors import UsageError, unknown_name
from puna.jobs.compressed import compressed_sizes
from puna.jobs.measured import measured_rates
from puna.jobs.quantities import parse_bytes
from puna.planning import counting
from puna.planning.compute import planned_flops, training_flops
from puna.planning.fit import Attempt, CardFit, Fit, fit_cards, fit_memory
from puna.planning.memory import Memory, bus_bytes_per_step, peak_memory
from puna.planning.settings import Base, Compressed, FullTraining, Inference, LoraTraining, Loss, Method, Settings
from puna.planning.speed import step_seconds
from puna.weights.headers import read_stored

__all__ = ["AdapterMethod", "Lora", "PlanFlops", "PlanResult", "PlanSettings", "PlansResult", "Traits", "plan"]

DEFAULT_SEQ = 2048

AdapterMethod = Literal["lora", "rslora", "dora", "pissa"]
ADAPTER_METHODS: tuple[AdapterMethod, ...] = get_args(AdapterMethod)
Model = str | Path | ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What distinguishes a generation; None where a model is no preset or nothing was published. exchanged: how a variant for
    study differs from a Llama.
    """

    generation: str | None
    tokenizer: str | None
    vocabulary: int
    heads: int
    kv_heads: int
    ffn: int
    rope_base: float | None
    context: int
    training_tokens: float | None
    exchanged: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """An adapter's size; `per_module` counts one layer's Linears, `percent` is of the base's parameters.

    `frozen` are numbers that stand beside what is trained: a PiSSA's start, a DoRA's lengths of the base's rows.
    """

    method: AdapterMethod
    rank: int
    parameters: int
    frozen: int
    percent: float
    per_module: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFlops:
    """Causal mean over the sequence; `train_per_token` is of the planned training, of full training where none is."""

    forward_per_token: int
    train_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What the figures hold for; `train` is None for inference."""

    train: str | None
    rank: int
    targets: tuple[str, ...]
    base: Base
    batch: int
    seq: int
    checkpointing: bool
    loss: Loss
    streamed_layers: int
    streamed_embedding: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """What `puna plan MODEL --json` prints.

    `embedding_parameters` counts the input table, `head_parameters` the output projection (0 when tied). With a memory
    to fit, `settings`, `bytes` and `flops` are those found, `changed` says what differs from the wanted ones, and where
    `fits` is false they are those of `smallest_bytes`, the smallest memory that would do. Else `fits` is None. `tried`
    are the steps of that search, `instead` what would fit on a smaller base. `seconds_per_step` is of a training step on
    this processor, where `puna doctor` has measured it and the model is dense.
    """

    model: str
    parameters: int
    embedding_parameters: int
    head_parameters: int
    trainable_parameters: int
    lora: Lora
    bytes: Memory
    kv_cache_bytes_per_token: int
    flops: PlanFlops
    fits: bool | None
    memory_bytes: int | None
    smallest_bytes: int | None
    changed: tuple[str, ...]
    tried: tuple[Attempt, ...]
    instead: tuple[Attempt, ...]
    bus_bytes_per_step: int
    seconds_per_step: float | None
    settings: PlanSettings
    traits: Traits
    cards: tuple[CardFit, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlansResult:
    """What `puna plan MODEL MODEL... --json` prints."""

    plans: tuple[PlanResult, ...]


def plan(
    models: Model | Sequence[Model],
    *,
    seq: int | None = None,
    batch: int = 1,
    train: str | None = None,
    method: AdapterMethod = "lora",
    rank: int = 16,
    targets: str = "all",
    base: Base | None = None,
    checkpointing: bool = False,
    loss: Loss = "chunked",
    fit: str | int | None = None,
    cards: bool = False,
) -> PlanResult | PlansResult:
    """Exact counts and a predicted peak; PlansResult for several models.

    Args:   models: a preset's name, a path that read_config knows, or a ModelConfig; one or several.
            seq: tokens of a sequence; None: 2048, or the model's context where that is shorter.
            train: `full`, `lora` or None for inference. method: the kind of adapter that is counted.
            base: how weights are stored; None: float32 for full training (bfloat16 on cards), else bfloat16.
            fit: a memory in bytes or as text (`16GB`).
            cards: add the table of common cards.
    Errors: UsageError for a name, size or combination that does not exist.
    """
    several = [models] if isinstance(models, str | Path | ModelConfig) else list(models)
    if not several:
        raise UsageError("plan: expected at least one model, got none", "name a preset such as llama-3-8b")
    if method not in ADAPTER_METHODS:
        raise unknown_name("method", method, ADAPTER_METHODS)
    lora = LoraTraining(
        rank=rank, targets=match_linears(targets), magnitudes=method == "dora", starts=method == "pissa"
    )
    training = _method(train, lora)
    memory_bytes = parse_bytes(fit) if isinstance(fit, str) else fit
    chosen: Base = base or ("float32" if isinstance(training, FullTraining) else "bfloat16")
    results = []
    for model in several:
        name, config, generation, compressed = _read(model)
        if isinstance(training, LoraTraining) or chosen in ("int8", "nf4"):
            config.require_llama(name)
        settings = Settings(
            compressed=compressed,
            method=training,
            seq=_sequence(name, config, seq),
            batch=batch,
            base=chosen,
            checkpointing=checkpointing,
            loss=loss,
        )
        card_settings = replace(settings, base=base or "bfloat16") if cards else None
        found = _find(config, settings, memory_bytes)
        lora_size = _lora(config, lora, method, _counts(config, found.settings)[0])
        results.append(_plan_one(name, config, generation, found, lora_size, memory_bytes, card_settings))
    return results[0] if len(results) == 1 else PlansResult(plans=tuple(results))


def _find(config: ModelConfig, wanted: Settings, memory_bytes: int | None) -> Fit:
    if memory_bytes is None:
        return Fit(fits=True, settings=wanted, memory=peak_memory(config, wanted), changed=())
    return fit_memory(config, wanted, memory_bytes)


def _plan_one(
    name: str,
    config: ModelConfig,
    generation: Generation | None,
    found: Fit,
    lora: Lora,
    memory_bytes: int | None,
    card_settings: Settings | None,
) -> PlanResult:
    parameters, table, head = _counts(config, found.settings)
    return PlanResult(
        model=name,
        parameters=parameters,
        embedding_parameters=table,
        head_parameters=head,
        trainable_parameters={"inference": 0, "full": parameters, "lora": lora.parameters}[found.settings.method.kind],
        lora=lora,
        bytes=found.memory,
        kv_cache_bytes_per_token=counting.kv_cache_bytes_per_token(config, found.settings.compute_bytes),
        flops=_flops(config, found.settings),
        fits=None if memory_bytes is None else found.fits,
        memory_bytes=memory_bytes,
        smallest_bytes=None if found.fits else found.memory.total,
        changed=found.changed,
        tried=found.tried,
        instead=found.instead,
        bus_bytes_per_step=bus_bytes_per_step(config, found.settings),
        seconds_per_step=_seconds(config, found.settings),
        settings=_settings(found.settings, lora),
        traits=_traits(config, generation),
        cards=None if card_settings is None else fit_cards(config, card_settings),
    )


def _counts(config: ModelConfig, settings: Settings) -> tuple[int, int, int]:
    """Numbers of the model, of its input table, and of a head that is not the table."""
    if (smaller := settings.compressed) is not None:
        linears = counting.linear_parameters(config) if settings.rounds_anew else smaller.parameters
        table, head = smaller.table, smaller.head
        return linears + table + head + counting.norm_parameters(config), table, head
    parameters = counting.parameter_count(config)
    return parameters, counting.embedding_parameters(config), counting.head_parameters(config)


def _lora(config: ModelConfig, lora: LoraTraining, method: AdapterMethod, parameters: int) -> Lora:
    """The adapter's size."""
    factors = counting.lora_parameters(config, lora.rank, lora.targets)
    trained = counting.lora_parameters(config, lora.rank, lora.targets, magnitudes=lora.magnitudes)
    return Lora(
        method=method,
        rank=lora.rank,
        parameters=trained,
        frozen=(factors if lora.starts else 0) + trained - factors,
        percent=100 * trained / parameters,
        per_module=counting.lora_per_module(config, lora.rank, lora.targets, magnitudes=lora.magnitudes),
    )


def _read(model: Model) -> tuple[str, ModelConfig, Generation | None, Compressed | None]:
    if isinstance(model, ModelConfig):
        return "config", model, None, None
    if isinstance(model, str) and (model in PRESETS or not Path(model).exists()):
        preset = find_preset(model)
        return preset.name, preset.config, preset.generation, None
    stored = read_stored(Path(model))
    return str(model), stored.model, None, compressed_sizes(stored)


def _method(train: str | None, lora: LoraTraining) -> Method:
    methods: dict[str | None, Method] = {None: Inference(), "full": FullTraining(), "lora": lora}
    if train not in methods:
        raise unknown_name("training", str(train), ("full", "lora"))
    return methods[train]


def _sequence(name: str, config: ModelConfig, seq: int | None) -> int:
    if seq is None:
        return min(DEFAULT_SEQ, config.max_seq_len)
    if seq > config.max_seq_len:
        raise UsageError(
            f"seq: expected at most {name}'s context of {config.max_seq_len} tokens, got {seq}", "use a shorter --seq"
        )
    return seq


def _flops(config: ModelConfig, settings: Settings) -> PlanFlops:
    forward = planned_flops(config, replace(settings, batch=1)).total
    is_trained = not isinstance(settings.method, Inference)
    training = training_flops(config, settings) // settings.tokens if is_trained else 3 * forward // settings.seq
    return PlanFlops(forward_per_token=forward // settings.seq, train_per_token=training)


def _seconds(config: ModelConfig, settings: Settings) -> float | None:
    unknown = isinstance(settings.method, Inference) or settings.compressed is not None
    rates = None if unknown else measured_rates()
    return None if rates is None else step_seconds(config, settings, rates)


def _settings(settings: Settings, lora: Lora) -> PlanSettings:
    kind = settings.method.kind
    return PlanSettings(
        train=None if kind == "inference" else kind,
        rank=lora.rank,
        targets=tuple(lora.per_module),
        base=settings.base,
        batch=settings.batch,
        seq=settings.seq,
        checkpointing=settings.checkpointing,
        loss=settings.loss,
        streamed_layers=settings.streamed_layers,
        streamed_embedding=settings.streamed_embedding,
    )


def _traits(config: ModelConfig, generation: Generation | None) -> Traits:
    return Traits(
        generation=generation.name if generation else None,
        tokenizer=generation.tokenizer if generation else None,
        vocabulary=config.vocab_size,
        heads=config.n_heads,
        kv_heads=config.n_kv_heads,
        ffn=config.ffn_dim,
        rope_base=config.rope_theta if config.position == "rope" else None,
        context=config.max_seq_len,
        training_tokens=generation.training_tokens if generation else None,
        exchanged=config.exchanged,
    )
