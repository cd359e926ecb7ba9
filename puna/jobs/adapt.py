"""Fine-tuning with LoRA: a model and records -> an adapter that PEFT loads; and folding an adapter into its base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puna.adaptation.lint import RecordCounts
from puna.adaptation.merge import merge as merge_into_base
from puna.adaptation.records import RecordSettings
from puna.adaptation.rows import RecordSource, collate, rows_sha256
from puna.adaptation.targets import adapter_of, attach
from puna.arch.config import ModelConfig
from puna.arch.modules import match_linears
from puna.errors import UsageError
from puna.evaluation.agreement import compare_logits
from puna.evaluation.perplexity import evaluate_windows
from puna.jobs.adapt_data import pack_data, record_rows
from puna.jobs.load import LoadedModel, find_base, find_model, load
from puna.jobs.machine import choose_device
from puna.jobs.peak import PeakMemory
from puna.jobs.proof_texts import PROOF_TEXTS
from puna.jobs.recipe import apply_settings, fill, read_recipe, section
from puna.jobs.run_folder import RunFolder, check_replaceable, open_run, run_training
from puna.jobs.run_report import learning_sections, peak_row, write_run_report, write_unfinished_report
from puna.jobs.sections import memory_section
from puna.jobs.train_recipe import training_table
from puna.model.linears.adapter import LoraSettings
from puna.planning.memory import PROCESS_BYTES, Memory, peak_memory
from puna.planning.settings import LoraTraining, Settings
from puna.report.labels import label
from puna.report.numbers import human_number
from puna.report.page import Section
from puna.training.checkpoint import TrainState
from puna.training.config import TrainingConfig
from puna.training.events import HeldOut, Observer
from puna.training.optimizer import trainable
from puna.weights.adapters import save_adapter
from puna.weights.folder import save_folder
from puna.weights.loading import weights_sha256

__all__ = [
    "AdaptRecipe",
    "AdaptResult",
    "MergeResult",
    "adapt",
    "adapt_recipe",
    "adapt_rows",
    "merge",
    "planned_memory",
    "resumed_recipe",
]

_LORA = {"rank": 16, "alpha": 32.0, "targets": "all"}
_TRAINING = {"budget": {"kind": "steps", "steps": 200}, "learning_rate": 1e-3, "weight_decay": 0.0}
_PROOF_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptRecipe:
    """Everything an adaptation depends on."""

    base: Path
    data: tuple[Path, ...]
    lora: LoraSettings
    training: TrainingConfig
    validation: Path | None = None
    records: RecordSettings = RecordSettings()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("data: expected at least one file or folder of records", "name text, or a .jsonl file")
        if self.training.packing != "contiguous":
            raise UsageError(
                f"training.packing: expected none in an adaptation, got {self.training.packing}",
                "leave it out: records are packed whole and never see each other",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptResult:
    """What `puna adapt --json` prints."""

    trainable_parameters: int
    steps: int
    tokens: int
    tokens_per_second: float
    loss_first: float
    loss_last: float
    validation_nats: float
    peak_bytes: int
    planned_peak_bytes: int
    records: RecordCounts
    adapter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What `puna adapt merge --json` prints: merged against attached, on a fixed text."""

    max_logit_difference: float
    largest_logit: float
    kl_nats: float
    model: str


def adapt_recipe(
    *,
    model: str = "",
    data: Sequence[Path] = (),
    rank: int | None = None,
    alpha: float | None = None,
    targets: str | None = None,
    training: Mapping[str, Any],
    validation: Path | None = None,
    records: Mapping[str, Any] | None = None,
    recipe: Path | None = None,
    settings: Sequence[str] = (),
) -> AdaptRecipe:
    """Put a recipe together: defaults < recipe file < settings < flags; None and empty are flags not given.

    Args: targets: all, attention, mlp, or Linears joined by commas; a recipe may write a list of Linears too.
          training: what `training_flags` made of the flags. records: fields of RecordSettings.
    """
    table = apply_settings({} if recipe is None else read_recipe(recipe), settings)
    if model:
        table["base"] = str(find_model(model))
    if data:
        table["data"] = [str(path) for path in data]
    if validation is not None:
        table["validation"] = str(validation)
    flags = {"rank": rank, "alpha": alpha, "targets": targets}
    lora = {**_LORA, **section(table, "lora"), **{name: value for name, value in flags.items() if value is not None}}
    if isinstance(lora["targets"], str):
        lora["targets"] = match_linears(lora["targets"])
    table["lora"] = lora
    if records:
        table["records"] = {**section(table, "records"), **records}
    table["training"] = training_table(_TRAINING, section(table, "training"), training)
    return fill(AdaptRecipe, table)


def resumed_recipe(out: Path, settings: Sequence[str] = ()) -> AdaptRecipe:
    """The recipe that a run was started with, with these settings. Errors: UsageError where there is none."""
    return fill(AdaptRecipe, apply_settings(read_recipe(RunFolder(out).recipe), settings))


def adapt(
    recipe: AdaptRecipe,
    out: str | Path,
    *,
    resume: bool = False,
    anyway: bool = False,
    device: str = "auto",
    observers: tuple[Observer, ...] = (),
    tensorboard: bool | None = None,
) -> AdaptResult:
    """Train an adapter for the recipe's base into `out`/adapter; with `resume`, go on from the latest checkpoint.

    A finished run is not trained further: its result is made again from its last checkpoint.

    Args:   anyway: learn from what can be learned, whatever the lint of the records says.
            tensorboard: whether to write event files for it; None: where it is installed.
    Errors: BadData, CheckpointMismatch, DiskFull, Interrupted (after saving), MissingExtra, NonFiniteLoss, RunLocked, UsageError.
    """
    out, place, config = Path(out), choose_device(device), recipe.training
    with open_run(out, recipe, resume=resume) as folder:
        peak = PeakMemory(place)
        loaded = load(recipe.base, device=place)
        rows, held_out, counts = pack_data(
            recipe.data, recipe.validation, recipe.records, loaded, seq=config.seq, anyway=anyway
        )
        attach(loaded.llama, recipe.lora, config.seed)
        batches = [
            collate(held_out[start : start + config.micro_batch])
            for start in range(0, len(held_out), config.micro_batch)
        ]
        source = RecordSource(rows, config.batch, config.micro_batch, config.seed)
        state = run_training(
            folder,
            loaded.llama,
            config,
            source,
            lambda: HeldOut(nats=evaluate_windows(loaded.llama, batches).nats_per_token),
            observers,
            peak=peak,
            data={"the records": rows_sha256(rows)},
            show=lambda state, is_stopped: write_unfinished_report(
                folder, "adapt", state, config, _sections(folder, recipe, loaded, state), is_stopped=is_stopped
            ),
            tensorboard=tensorboard,
        )
        result = _result(state, counts, recipe, loaded, out / "adapter")
        adapter = adapter_of(loaded.llama, base_sha256=weights_sha256(recipe.base))
        save_adapter(adapter, out / "adapter", base=str(recipe.base.resolve()))
        write_run_report(folder, "adapt", adapt_rows(result), _sections(folder, recipe, loaded, state))
    return result


def planned_memory(recipe: AdaptRecipe, config: ModelConfig) -> Memory:
    """The planner's peak for this run, for a process on a CPU."""
    method = LoraTraining(rank=recipe.lora.rank, targets=recipe.lora.targets)
    batch = min(recipe.training.batch, recipe.training.micro_batch)
    settings = Settings(
        method=method,
        seq=recipe.training.seq,
        batch=batch,
        base="float32",
        checkpointing=recipe.training.checkpoint_activations,
    )
    return peak_memory(config, settings, runtime_bytes=PROCESS_BYTES)


def merge(adapter: str | Path, out: Path, *, base_model: str | Path | None = None, text: str = "") -> MergeResult:
    """Fold an adapter into its base in float32, prove it on a text, save the merged model in `out`.

    Errors: UsageError: no base, or something else stands at `out`. CheckpointMismatch: another base. FormatError.
    """
    check_replaceable(out)
    base = find_base(adapter) if base_model is None else find_model(base_model)
    if out.resolve() == base.resolve():
        raise UsageError(f"{out} is the base itself", "choose another --out: the adapter belongs to this base")
    attached, merged = load(base, adapter=adapter), load(base, adapter=adapter)
    merge_into_base(merged.llama)
    proof = attached.tokenizer.encode(text if text else PROOF_TEXTS[0] + PROOF_TEXTS[1], bos=True)[:_PROOF_TOKENS]
    agreement = compare_logits(attached.llama, merged.llama, torch.tensor([proof]))
    save_folder(merged.llama, out, merged.tokenizer)
    return MergeResult(
        max_logit_difference=agreement.max_logit_difference,
        largest_logit=agreement.largest_logit,
        kl_nats=agreement.kl_nats,
        model=str(out),
    )


def adapt_rows(result: AdaptResult, lang: str = "en") -> list[tuple[str, str]]:
    """The result as lines for people."""
    return [
        *record_rows(lang, result.records),
        (label(lang, "run.row.trainable"), f"{result.trainable_parameters:,}"),
        (label(lang, "run.row.steps"), f"{result.steps:,}"),
        (label(lang, "run.row.speed"), human_number(result.tokens_per_second)),
        (label(lang, "run.row.loss"), f"{result.loss_first:.3f} → {result.loss_last:.3f}"),
        (label(lang, "run.row.held_out"), f"{result.validation_nats:.3f}"),
        peak_row(lang, result.peak_bytes, result.planned_peak_bytes),
        (label(lang, "run.row.adapter"), result.adapter),
    ]


def _sections(folder: RunFolder, recipe: AdaptRecipe, loaded: LoadedModel, state: TrainState) -> tuple[Section, ...]:
    plan = planned_memory(recipe, loaded.config)
    return *learning_sections("en", folder), memory_section("en", plan, state.peak_bytes)


def _result(
    state: TrainState, counts: RecordCounts, recipe: AdaptRecipe, loaded: LoadedModel, adapter: Path
) -> AdaptResult:
    assert state.first_nats is not None
    assert state.last_nats is not None
    assert state.validation_nats is not None
    return AdaptResult(
        trainable_parameters=sum(weight.numel() for weight in trainable(loaded.llama).values()),
        steps=state.done.steps,
        tokens=state.done.tokens,
        tokens_per_second=state.done.tokens / state.done.seconds,
        loss_first=state.first_nats,
        loss_last=state.last_nats,
        validation_nats=state.validation_nats,
        peak_bytes=state.peak_bytes,
        planned_peak_bytes=planned_memory(recipe, loaded.config).total,
        records=counts,
        adapter=str(adapter),
    )
