"""The recipe of a pretraining run: model, training and data, from defaults, a recipe file, settings and flags."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from puna.arch.config import ModelConfig
from puna.arch.presets import PRESETS, find_preset
from puna.errors import UsageError
from puna.jobs.doctor import choose_precision
from puna.jobs.load import find_model
from puna.jobs.mixing import MixtureRule
from puna.jobs.recipe import apply_settings, fill, read_recipe, section
from puna.jobs.run_folder import RunFolder
from puna.tokens.shards import open_shards
from puna.training.config import EpochBudget, TrainingConfig
from puna.weights.headers import read_config

__all__ = [
    "DataSource",
    "TrainRecipe",
    "parse_source",
    "resumed_recipe",
    "train_recipe",
    "training_flags",
    "training_table",
]

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
    mixture: MixtureRule = field(default_factory=MixtureRule)
    validation: Path | None = None
    start: Path | None = None

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("data: expected at least one folder of token shards", "puna tokens build makes one")
        paths = [source.path.absolute() for source in self.data]
        for path in paths:
            if paths.count(path) > 1:
                raise UsageError(
                    f"data: {path} stands there twice", "name it once, with a weight if it is to count more"
                )
        if isinstance(self.training.budget, EpochBudget):
            raise UsageError(
                "training.budget: expected steps, tokens or seconds, got epochs",
                "--tokens says how much is read; a dry run says how many epochs of each source that is",
            )
        if self.training.lora_b_ratio != 1:
            raise UsageError(
                f"training.lora_b_ratio: expected none without an adapter, got {self.training.lora_b_ratio}",
                "leave it out: it is for puna adapt",
            )
        if self.training.seq > self.model.max_seq_len:
            raise UsageError(
                f"training.seq: expected at most model.max_seq_len = {self.model.max_seq_len}, got {self.training.seq}",
                "shorten --seq, or raise --set model.max_seq_len",
            )
        self._check_batch_norm()

    def _check_batch_norm(self) -> None:
        """Errors: UsageError: what would change the batch that such a norm measures."""
        if self.model.norm != "batch":
            return
        training = self.training
        for name, value, expected in (
            ("checkpoint_activations", training.checkpoint_activations, False),
            ("packing", training.packing, "contiguous"),
            ("micro_batch", min(training.micro_batch, training.batch), training.batch),
        ):
            if value != expected:
                raise UsageError(
                    f"training.{name}: expected {expected} with norms of kind batch, got {value}",
                    "it measures the tokens of a batch, all at once and each once",
                )


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


def resumed_recipe(out: Path, settings: Sequence[str] = ()) -> TrainRecipe:
    """The recipe that a run was started with, with these settings; most of them may not change (puna/jobs/resuming.py).

    Errors: UsageError where there is none.
    """
    return fill(TrainRecipe, apply_settings(read_recipe(RunFolder(out).recipe), settings))


def parse_source(text: str) -> DataSource:
    """`DIR` or `DIR:weight`. Errors: UsageError for a weight that is no number."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return DataSource(path=Path(text))
    try:
        return DataSource(path=Path(path), weight=float(weight))
    except ValueError:
        raise UsageError(f"--data {text}: expected DIR or DIR:weight", "for example --data prose:0.7") from None


def training_flags(
    *,
    steps: int | None = None,
    tokens: int | None = None,
    seconds: float | None = None,
    epochs: float | None = None,
    precision: str = "auto",
    **given: Any,
) -> dict[str, Any]:
    """The [training] table of the flags that were given; None and `auto` were not.

    Errors: UsageError for more than one budget (steps, tokens, epochs or seconds).
    """
    budgets = {"steps": steps, "tokens": tokens, "epochs": epochs, "seconds": seconds}
    named = [name for name, value in budgets.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"expected one budget, got --{' and --'.join(named)}", f"give one of --{', --'.join(budgets)}")
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


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in table.items() if value is not None}
