"""Pretraining: token shards -> a model folder, through checkpoints that survive any interruption."""

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
from puna.jobs.recipe import apply_settings, fill, read_recipe
from puna.jobs.run_folder import RunFolder, open_run, run_training
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.planning.counting import parameter_count
from puna.planning.memory import Memory, peak_memory
from puna.planning.settings import FullTraining, Settings
from puna.report.numbers import human_bytes, human_number
from puna.text.mixture import Mixture, integer_weights
from puna.tokens.shards import Shards, open_shards
from puna.tokens.tokenizer import load_tokenizer
from puna.training.batches import WindowSource, ordered_windows
from puna.training.checkpoint import TrainState
from puna.training.config import TrainingConfig
from puna.training.loop import Observer
from puna.weights.folder import load_folder, save_folder
from puna.weights.headers import read_config

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
]

_HELD_OUT_SHARE, _HELD_OUT_MINIMUM = 100, 10
_VALIDATION_WINDOWS = 64


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
    """What `puna train --dry-run` prints."""

    parameters: int
    bytes: Memory
    planned_peak_bytes: int
    tokens: dict[str, int]


def train_recipe(
    *,
    model: str,
    data: Sequence[DataSource],
    training: Mapping[str, Any],
    validation: Path | None = None,
    recipe: Path | None = None,
    settings: Sequence[str] = (),
) -> TrainRecipe:
    """Put a recipe together: defaults < recipe file < settings < flags. `training` holds the flags that were given.

    A preset's vocabulary is replaced by that of the data's tokenizer unless the recipe or a setting names one.
    """
    table = apply_settings({} if recipe is None else read_recipe(recipe), settings)
    given = {str(key): value for key, value in table.pop("model", {}).items()}
    preset = str(table.pop("preset", model))
    if data:
        table["data"] = [_plain(asdict(item)) for item in data]
    if validation is not None:
        table["validation"] = str(validation)
    if preset in PRESETS:
        config = asdict(find_preset(preset).config)
        config["vocab_size"] = _vocabulary(table)
    else:
        config = asdict(read_config(find_model(preset)))
        table["start"] = str(find_model(preset))
    budget = {"budget": {"kind": "steps", "steps": 1000}}
    table["training"] = {**budget, **table.get("training", {}), **training}
    table["model"] = {**config, **given}
    return fill(TrainRecipe, table)


def resumed_recipe(out: Path) -> TrainRecipe:
    """The recipe that a run was started with. Errors: UsageError where there is none."""
    return fill(TrainRecipe, read_recipe(RunFolder(out).recipe))


def train(
    recipe: TrainRecipe,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    observers: tuple[Observer, ...] = (),
) -> TrainResult:
    """Train the recipe's model into the run folder `out`; with `resume`, go on from its latest checkpoint."""
    place = choose_device(device)
    with open_run(out, recipe, resume=resume) as folder:
        shards = [open_shards(source.path) for source in recipe.data]
        training, held_out = _held_out(shards, recipe.validation)
        mixture = Mixture(weights=_weights(recipe.data, training))
        peak = PeakMemory(place)
        model = _build(recipe).to(place)
        batch = recipe.training.micro_batch
        validation = [
            window.to(place)
            for part in held_out
            for window in ordered_windows(part, recipe.training.seq, batch, _VALIDATION_WINDOWS)
        ]
        source = WindowSource(training, mixture, recipe.training)
        state = run_training(
            folder,
            model,
            recipe.training,
            source,
            lambda: evaluate_windows(model, validation).nats_per_token,
            observers,
        )
        growth = peak.growth_bytes()
        result_folder = out / "model"
        tokenizer = load_tokenizer(recipe.data[0].path / "tokenizer")
        save_folder(model, result_folder, tokenizer)
    return _result(state, growth, recipe, result_folder)


def dry_run(recipe: TrainRecipe) -> DryRun:
    """What `train` would do: the plan of its memory, and how often each source would be read."""
    sizes = [len(open_shards(source.path)) for source in recipe.data]
    plan = planned_memory(recipe.model, recipe.training)
    return DryRun(
        parameters=parameter_count(recipe.model),
        bytes=plan,
        planned_peak_bytes=plan.total,
        tokens={str(source.path): size for source, size in zip(recipe.data, sizes, strict=True)},
    )


def train_rows(result: TrainResult) -> list[tuple[str, str]]:
    """The result as lines for people."""
    return [
        ("steps", f"{result.steps:,}"),
        ("tokens", f"{result.tokens:,}"),
        ("tokens per second", human_number(result.tokens_per_second)),
        ("loss, nats per token", f"{result.loss_first:.3f} -> {result.loss:.3f}"),
        ("held-out nats per token", f"{result.validation_nats:.3f}"),
        ("peak memory", f"{human_bytes(result.peak_bytes)} (planned {human_bytes(result.planned_peak_bytes)})"),
        ("model", result.model),
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
    """The planner's peak for this run, without the process's fixed share."""
    batch = min(training.batch, training.micro_batch)
    settings = Settings(method=FullTraining(), seq=training.seq, batch=batch, base="float32")
    return peak_memory(config, settings, runtime_bytes=0)


def training_flags(
    *,
    steps: int | None = None,
    tokens: int | None = None,
    seconds: float | None = None,
    precision: str = "auto",
    **given: Any,
) -> dict[str, Any]:
    """The [training] table of the flags that were given; a budget is steps, tokens or seconds, one of them."""
    budgets = {"steps": steps, "tokens": tokens, "seconds": seconds}
    named = [name for name, value in budgets.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"expected one budget, got --{' and --'.join(named)}", "give steps, tokens or seconds")
    if precision == "float16":
        raise UsageError("training in float16 is not built yet", "use auto, float32 or bfloat16")
    table = {name: value for name, value in given.items() if value is not None}
    if "batch" in table:
        table.setdefault("micro_batch", table["batch"])
    for name in named:
        table["budget"] = {"kind": name, name: budgets[name]}
    return {**table, "precision": choose_precision(precision)}


def _build(recipe: TrainRecipe) -> Llama:
    if recipe.start is None:
        return initialise(Llama(recipe.model), recipe.training.seed)
    return load_folder(recipe.start)


def _held_out(shards: Sequence[Shards], validation: Path | None) -> tuple[list[Shards], list[Shards]]:
    """Training and held-out parts: a folder of its own, or the last 1 % of each source's documents, at least 10."""
    if validation is not None:
        return list(shards), [open_shards(validation)]
    parts = [part.split(max(_HELD_OUT_MINIMUM, len(part.document_ends) // _HELD_OUT_SHARE)) for part in shards]
    return [first for first, _ in parts], [last for _, last in parts]


def _vocabulary(table: Mapping[str, Any]) -> int:
    """The vocabulary of the data's tokenizer. Errors: CheckpointMismatch where two sources have different ones."""
    sources = [open_shards(Path(source["path"])) for source in table.get("data", ())]
    if not sources:
        raise UsageError("expected --data", "puna tokens build makes a folder of token shards")
    if len({source.tokenizer_sha256 for source in sources}) > 1:
        raise CheckpointMismatch("the sources were built with different tokenizers", "build them anew with one")
    return sources[0].vocab_size


def _weights(sources: Sequence[DataSource], shards: Sequence[Shards]) -> tuple[int, ...]:
    given = [source.weight for source in sources]
    if all(weight is None for weight in given):
        return integer_weights([len(part) for part in shards])
    if any(weight is None or not weight > 0 for weight in given):
        raise UsageError("--data: expected a weight above 0 for every source or for none", "--data a:0.7 --data b:0.3")
    return integer_weights([weight for weight in given if weight is not None])


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in table.items() if value is not None}


def _result(state: TrainState, growth: int, recipe: TrainRecipe, model: Path) -> TrainResult:
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
        peak_bytes=growth,
        planned_peak_bytes=planned_memory(recipe.model, recipe.training).total,
        seconds=state.done.seconds,
        model=str(model),
    )
