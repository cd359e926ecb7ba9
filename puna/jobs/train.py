"""Pretraining: token shards -> a model folder, through checkpoints that survive any interruption."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puna.arch.config import ModelConfig
from puna.arch.presets import PRESETS, find_preset
from puna.errors import CheckpointMismatch, UsageError
from puna.evaluation.perplexity import evaluate_windows
from puna.jobs.doctor import choose_precision
from puna.jobs.load import find_model
from puna.jobs.machine import choose_device
from puna.jobs.peak import PeakMemory
from puna.jobs.recipe import apply_settings, fill, read_recipe, section
from puna.jobs.run_folder import RunFolder, open_run, run_training
from puna.jobs.run_report import loss_section, peak_row, write_run_report
from puna.jobs.sections import memory_section, model_section
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.planning.counting import parameter_count
from puna.planning.memory import PROCESS_BYTES, Memory, peak_memory
from puna.planning.settings import FullTraining, Settings
from puna.report.labels import label
from puna.report.numbers import human_number
from puna.text.mixture import Mixture, epochs, integer_weights
from puna.tokens.shards import Shards, open_shards
from puna.tokens.tokenizer import load_tokenizer
from puna.training.batches import WindowSource, ordered_windows
from puna.training.checkpoint import TrainState
from puna.training.config import StepBudget, TokenBudget, TrainingConfig
from puna.training.loop import Observer
from puna.weights.folder import save_folder
from puna.weights.headers import read_config, read_header
from puna.weights.loading import load_llama
from puna.weights.vocabulary import tokenizer_of

__all__ = [
    "DataSource",
    "DryRun",
    "TrainRecipe",
    "TrainResult",
    "dry_run",
    "parse_source",
    "planned_memory",
    "resumed_recipe",
    "train",
    "train_recipe",
    "train_rows",
    "training_flags",
    "training_table",
]

_HELD_OUT_SHARE, _HELD_OUT_MINIMUM = 100, 10
_VALIDATION_WINDOWS = 64
_DEFAULT_PRESET = "small"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """A folder of token shards and its weight in the mixture; without weights sources count by their tokens."""

    path: Path
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecipe:
    """Everything a pretraining run depends on. `start` is a model folder to continue from."""

    model: ModelConfig
    training: TrainingConfig
    data: tuple[DataSource, ...]
    validation: Path | None = None
    start: Path | None = None

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("data: expected at least one folder of token shards", "puna tokens build makes one")
        if self.training.seq > self.model.max_seq_len:
            raise UsageError(
                f"training.seq: expected at most model.max_seq_len = {self.model.max_seq_len}, got {self.training.seq}",
                "shorten --seq, or raise --set model.max_seq_len",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What `puna train --json` prints."""

    steps: int
    tokens: int
    tokens_per_second: float
    loss_first: float
    loss: float
    validation_nats: float
    peak_bytes: int
    planned_peak_bytes: int
    seconds: float
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What `puna train --dry-run` prints.

    tokens, shares, epochs: of each source what there is to train on, its share of the windows, and how often it will
                            be read; epochs are empty where the clock decides.
    """

    parameters: int
    bytes: Memory
    planned_peak_bytes: int
    tokens: dict[str, int]
    shares: dict[str, float]
    epochs: dict[str, float]


def train_recipe(
    *,
    model: str | None = None,
    data: Sequence[DataSource] = (),
    training: Mapping[str, Any],
    validation: Path | None = None,
    recipe: Path | None = None,
    settings: Sequence[str] = (),
) -> TrainRecipe:
    """Put a recipe together: defaults < recipe file < settings < flags; None and an empty list are flags not given.

    Args: model: a preset or a model to continue; a recipe names it as `preset`. Without either it is `small`.
          training: what `training_flags` made of the flags.
    A preset's vocabulary is replaced by that of the data's tokenizer unless the recipe or a setting names one.
    """
    table = apply_settings({} if recipe is None else read_recipe(recipe), settings)
    given, named = section(table, "model"), table.pop("preset", _DEFAULT_PRESET)
    preset = str(named if model is None else model)
    if data:
        table["data"] = [_plain(asdict(item)) for item in data]
    if validation is not None:
        table["validation"] = str(validation)
    if preset in PRESETS:
        config = asdict(find_preset(preset).config)
        if "vocab_size" not in given:
            config["vocab_size"] = _vocabulary(table)
    else:
        config = asdict(read_config(find_model(preset)))
        table["start"] = str(find_model(preset))
    budget = {"budget": {"kind": "steps", "steps": 1000}}
    table["training"] = training_table(budget, section(table, "training"), training)
    table["model"] = {**config, **given}
    return fill(TrainRecipe, table)


def resumed_recipe(out: Path) -> TrainRecipe:
    """The recipe that a run was started with. Errors: UsageError where there is none."""
    return fill(TrainRecipe, read_recipe(RunFolder(out).recipe))


def train(
    recipe: TrainRecipe,
    out: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
    observers: tuple[Observer, ...] = (),
) -> TrainResult:
    """Train the recipe's model into the run folder `out`; with `resume`, go on from its latest checkpoint.

    A finished run is not trained further: its result is made again from its last checkpoint.
    Errors: BadData, CheckpointMismatch, DiskFull, Interrupted (after saving), NonFiniteLoss, RunLocked, UsageError.
    """
    out, place, config = Path(out), choose_device(device), recipe.training
    with open_run(out, recipe, resume=resume) as folder:
        training, held_out = _open_data(recipe)
        mixture = Mixture(weights=_weights(recipe.data, training))
        peak = PeakMemory(place)
        model = _build(recipe).to(place)
        validation = [
            window
            for part in held_out
            for window in ordered_windows(part, config.seq, config.micro_batch, _VALIDATION_WINDOWS)
        ]
        state = run_training(
            folder,
            model,
            config,
            WindowSource(training, mixture, config, [str(source.path) for source in recipe.data]),
            lambda: evaluate_windows(model, validation).nats_per_token,
            observers,
            peak=peak,
            data=" ".join(part.sha256 for part in training),
        )
        result = _result(state, recipe, out / "model")
        save_folder(model, out / "model", load_tokenizer(recipe.data[0].path / "tokenizer"))
        _report(folder, recipe, result)
    return result


def dry_run(recipe: TrainRecipe) -> DryRun:
    """What `train` would do: the plan of its memory, and how often each source would be read."""
    training, _ = _open_data(recipe)
    names, sizes = [str(source.path) for source in recipe.data], [len(part) for part in training]
    weights = _weights(recipe.data, training)
    shares = [weight / sum(weights) for weight in weights]
    match recipe.training.budget:
        case StepBudget(steps=steps):
            visits = epochs(shares, sizes, steps * recipe.training.batch * recipe.training.seq)
        case TokenBudget(tokens=tokens):
            visits = epochs(shares, sizes, tokens)
        case _:
            visits = ()
    plan = planned_memory(recipe.model, recipe.training)
    return DryRun(
        parameters=parameter_count(recipe.model),
        bytes=plan,
        planned_peak_bytes=plan.total,
        tokens=dict(zip(names, sizes, strict=True)),
        shares=dict(zip(names, shares, strict=True)),
        epochs=dict(zip(names, visits, strict=False)),
    )


def train_rows(result: TrainResult, lang: str = "en") -> list[tuple[str, str]]:
    """The result as lines for people."""
    return [
        (label(lang, "run.row.steps"), f"{result.steps:,}"),
        (label(lang, "run.row.tokens"), f"{result.tokens:,}"),
        (label(lang, "run.row.speed"), human_number(result.tokens_per_second)),
        (label(lang, "run.row.loss"), f"{result.loss_first:.3f} → {result.loss:.3f}"),
        (label(lang, "run.row.held_out"), f"{result.validation_nats:.3f}"),
        peak_row(lang, result.peak_bytes, result.planned_peak_bytes),
        (label(lang, "run.row.model"), result.model),
    ]


def parse_source(text: str) -> DataSource:
    """`DIR` or `DIR:weight`. Errors: UsageError for a weight that is no number."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return DataSource(path=Path(text))
    try:
        return DataSource(path=Path(path), weight=float(weight))
    except ValueError:
        raise UsageError(f"--data {text}: expected DIR or DIR:weight", "for example --data prose:0.7") from None


def planned_memory(config: ModelConfig, training: TrainingConfig) -> Memory:
    """The planner's peak for this run, for a process on a CPU."""
    batch = min(training.batch, training.micro_batch)
    settings = Settings(
        method=FullTraining(),
        seq=training.seq,
        batch=batch,
        base="float32",
        checkpointing=training.checkpoint_activations,
    )
    return peak_memory(config, settings, runtime_bytes=PROCESS_BYTES)


def training_flags(
    *,
    steps: int | None = None,
    tokens: int | None = None,
    seconds: float | None = None,
    precision: str = "auto",
    **given: Any,
) -> dict[str, Any]:
    """The [training] table of the flags that were given; None and `auto` were not.

    Errors: UsageError for more than one budget (steps, tokens or seconds).
    """
    budgets = {"steps": steps, "tokens": tokens, "seconds": seconds}
    named = [name for name, value in budgets.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"expected one budget, got --{' and --'.join(named)}", "give steps, tokens or seconds")
    table = {name: value for name, value in given.items() if value is not None}
    for name in named:
        table["budget"] = {"kind": name, name: budgets[name]}
    return table if precision == "auto" else {**table, "precision": precision}


def training_table(defaults: Mapping[str, Any], given: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The [training] table: defaults < recipe and settings < flags; the precision measured, a step in one micro-batch."""
    table = {**defaults, **given, **flags}
    if table.get("precision", "auto") == "auto":
        table["precision"] = choose_precision("auto")
    if "batch" in table:
        table.setdefault("micro_batch", table["batch"])
    return table


def _build(recipe: TrainRecipe) -> Llama:
    """The model to train. Errors: CheckpointMismatch where the recipe changes a size of the model that it continues."""
    if recipe.start is None:
        return initialise(Llama(recipe.model), recipe.training.seed)
    model = load_llama(recipe.start)
    if model.config != recipe.model:
        raise CheckpointMismatch(
            f"{recipe.start}: expected the model of the recipe, got {model.config}",
            "a model that is continued keeps its sizes: leave out the settings of [model]",
        )
    return model


def _open_data(recipe: TrainRecipe) -> tuple[list[Shards], list[Shards]]:
    """Training and held-out parts: a folder of its own, or the last 1 % of each source's documents, at least 10.

    Errors: CheckpointMismatch where sources, held-out text and model do not share one tokenizer.
    """
    shards = [open_shards(source.path) for source in recipe.data]
    held_out = [] if recipe.validation is None else [open_shards(recipe.validation)]
    _check_tokenizer([*shards, *held_out], recipe)
    if held_out:
        return shards, held_out
    parts = [part.split(max(_HELD_OUT_MINIMUM, len(part.document_ends) // _HELD_OUT_SHARE)) for part in shards]
    return [first for first, _ in parts], [last for _, last in parts]


def _check_tokenizer(shards: Sequence[Shards], recipe: TrainRecipe) -> None:
    known = {part.tokenizer_sha256 for part in shards}
    own = None if recipe.start is None else tokenizer_of(read_header(recipe.start))
    if own is not None:
        known.add(own.sha256)
    if len(known) > 1:
        raise CheckpointMismatch(
            "data and model were not made with one tokenizer", "build all token shards anew with the same --tokenizer"
        )
    if shards[0].vocab_size > recipe.model.vocab_size:
        raise CheckpointMismatch(
            f"model.vocab_size: expected at least the tokenizer's {shards[0].vocab_size}, got {recipe.model.vocab_size}",
            "leave out model.vocab_size: the data's tokenizer gives it",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """The [[data]] tables alone."""

    data: tuple[DataSource, ...]


def _vocabulary(table: Mapping[str, Any]) -> int:
    """The vocabulary of the data's tokenizer. Errors: UsageError without data."""
    sources = fill(_Sources, {"data": table.get("data", [])}).data
    if not sources:
        raise UsageError("expected --data", "puna tokens build makes a folder of token shards")
    return open_shards(sources[0].path).vocab_size


def _weights(sources: Sequence[DataSource], shards: Sequence[Shards]) -> tuple[int, ...]:
    """Whole-number weights, at least 1: a source that was named is read."""
    given = [source.weight for source in sources]
    if all(weight is None for weight in given):
        return tuple(max(1, weight) for weight in integer_weights([len(part) for part in shards]))
    if any(weight is None or not 0 < weight < math.inf for weight in given):
        raise UsageError("--data: expected a weight above 0 for every source or for none", "--data a:0.7 --data b:0.3")
    return tuple(max(1, weight) for weight in integer_weights([weight for weight in given if weight is not None]))


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in table.items() if value is not None}


def _report(folder: RunFolder, recipe: TrainRecipe, result: TrainResult, lang: str = "en") -> None:
    config = recipe.training
    sections = (
        model_section(lang, recipe.model, result.steps, config.batch * config.seq),
        loss_section(lang, folder),
        memory_section(lang, planned_memory(recipe.model, config), result.peak_bytes),
    )
    write_run_report(folder, "train", train_rows(result, lang), sections, lang)


def _result(state: TrainState, recipe: TrainRecipe, model: Path) -> TrainResult:
    assert state.first_nats is not None
    assert state.last_nats is not None
    assert state.validation_nats is not None
    return TrainResult(
        steps=state.done.steps,
        tokens=state.done.tokens,
        tokens_per_second=state.done.tokens / state.done.seconds,
        loss_first=state.first_nats,
        loss=state.last_nats,
        validation_nats=state.validation_nats,
        peak_bytes=state.peak_bytes,
        planned_peak_bytes=planned_memory(recipe.model, recipe.training).total,
        seconds=state.done.seconds,
        model=str(model),
    )
