"""What `puna adapt` would do, without a weight read or a file written: the plan of its memory, its records and their lint."""

from dataclasses import dataclass

from puna.adaptation.lint import RecordCounts
from puna.adaptation.rows import Row
from puna.arch.config import ModelConfig
from puna.errors import BadData, UsageError
from puna.jobs.adapt_data import pack_data, preview
from puna.jobs.adapt_recipe import AdaptRecipe, planned_settings
from puna.jobs.compressed import compressed_sizes
from puna.jobs.fitting import device_memory
from puna.jobs.load import find_model
from puna.jobs.machine import available_bytes, choose_device
from puna.planning.counting import lora_parameters, parameter_count
from puna.planning.memory import Memory
from puna.planning.settings import LoraTraining, Settings
from puna.tokens.tokenizer import Tokenizer
from puna.training.config import EpochBudget, TrainingConfig
from puna.weights.headers import read_header
from puna.weights.vocabulary import tokenizer_of

__all__ = ["AdaptDryRun", "dry_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptDryRun:
    """What `puna adapt --dry-run` prints.

    available_bytes, fits: what the device has free now, and whether the plan is within it. rows, held_out_rows: packed
    records; 0 where the lint refuses them. learned_tokens: targets in `rows` that are learned. epochs: how often they would
    be read; None where the clock decides, or there are none.
    """

    parameters: int
    trainable_parameters: int
    bytes: Memory
    planned_peak_bytes: int
    available_bytes: int
    fits: bool
    records: RecordCounts
    rows: int
    held_out_rows: int
    learned_tokens: int
    epochs: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unread:
    """A model of which no weight was read."""

    tokenizer: Tokenizer
    config: ModelConfig


def dry_run(recipe: AdaptRecipe, device: str = "auto", *, anyway: bool = False) -> tuple[AdaptDryRun, BadData | None]:
    """The plan and the records of a run, and why the lint would refuse it, None where it would not.

    Errors: UsageError: no tokenizer, rows beyond the context. BadData: nothing can be read.
    """
    header, place = read_header(find_model(recipe.base)), choose_device(device)
    header.config.require_llama(recipe.base)
    tokenizer, config, training = tokenizer_of(header), header.config, recipe.training
    if tokenizer is None:
        raise UsageError(f"{recipe.base} has no tokenizer", "put the tokenizer's files beside the weights")
    model, error = _Unread(tokenizer=tokenizer, config=config), None
    rows: list[Row] = []
    held_out = 0
    try:
        packed = pack_data(recipe.data, recipe.validation, recipe.records, model, seq=training.seq, anyway=anyway)
        rows, counts, held_out = packed.rows, packed.counts, sum(map(len, packed.held_out.values()))
    except BadData as refused:
        error = refused
        counts = preview(recipe.base, recipe.data, recipe.records, seq=training.seq, count=1)[0].records
    settings, there = planned_settings(recipe, compressed_sizes(header.stored)), available_bytes(place)
    plan = device_memory(config, settings, place)
    learned = sum(int(row.keep.sum()) for row in rows)
    result = AdaptDryRun(
        parameters=parameter_count(config),
        trainable_parameters=_trainable(config, settings),
        bytes=plan,
        planned_peak_bytes=plan.total,
        available_bytes=there,
        fits=plan.total <= there,
        records=counts,
        rows=len(rows),
        held_out_rows=held_out,
        learned_tokens=learned,
        epochs=_epochs(training, len(rows), learned) if rows else None,
    )
    return result, error


def _trainable(config: ModelConfig, settings: Settings) -> int:
    method = settings.method
    if not isinstance(method, LoraTraining):
        return parameter_count(config)
    return lora_parameters(config, method.rank, method.targets, method.ranks, magnitudes=method.magnitudes)


def _epochs(training: TrainingConfig, rows: int, learned: int) -> float | None:
    """How often the rows are read within the budget."""
    budget = training.budget
    if isinstance(budget, EpochBudget):
        return budget.epochs
    tokens = budget.in_tokens(learned / rows * training.batch)
    return None if tokens is None else tokens / learned
