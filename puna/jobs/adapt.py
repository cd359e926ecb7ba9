"""Fine-tuning with LoRA: a model and records -> an adapter that PEFT loads; and folding an adapter into its base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from puna.adaptation.merge import merge as merge_into_base
from puna.adaptation.records import (
    RecordCounts,
    RecordSource,
    Row,
    collate,
    encode_records,
    pack_records,
    read_records,
)
from puna.adaptation.targets import adapter_of, attach
from puna.arch.modules import match_linears
from puna.errors import BadData, UsageError
from puna.evaluation.agreement import compare_logits
from puna.evaluation.perplexity import evaluate_windows
from puna.jobs.load import LoadedModel, find_base, find_model, load
from puna.jobs.machine import choose_device
from puna.jobs.peak import PeakMemory
from puna.jobs.recipe import apply_settings, fill, read_recipe
from puna.jobs.run_folder import RunFolder, open_run, run_training
from puna.model.linears.lora import LoraSettings
from puna.planning.memory import peak_memory
from puna.planning.settings import LoraTraining, Settings
from puna.report.numbers import human_bytes, human_number
from puna.training.checkpoint import TrainState
from puna.training.config import TrainingConfig
from puna.training.loop import Observer
from puna.training.optimizer import trainable
from puna.weights.adapters import save_adapter
from puna.weights.folder import save_folder, weights_sha256

__all__ = [
    "AdaptRecipe",
    "AdaptResult",
    "MergeResult",
    "adapt",
    "adapt_recipe",
    "adapt_rows",
    "merge",
    "resumed_recipe",
]

_HELD_OUT_SHARE = 10
_PROOF_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptRecipe:
    """Everything an adaptation depends on."""

    base: Path
    data: tuple[Path, ...]
    lora: LoraSettings
    training: TrainingConfig
    validation: Path | None = None


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
    model: str,
    data: Sequence[Path],
    rank: int,
    alpha: float,
    targets: str,
    training: Mapping[str, Any],
    validation: Path | None = None,
    recipe: Path | None = None,
    settings: Sequence[str] = (),
) -> AdaptRecipe:
    """Put a recipe together: defaults < recipe file < settings < flags. `training` holds the flags that were given."""
    table = apply_settings({} if recipe is None else read_recipe(recipe), settings)
    table["base"] = str(find_model(model))
    table["data"] = [str(path) for path in data]
    if validation is not None:
        table["validation"] = str(validation)
    lora = {"rank": rank, "alpha": float(alpha), "targets": match_linears(targets)}
    defaults = {"budget": {"kind": "steps", "steps": 200}, "learning_rate": 1e-3, "weight_decay": 0.0}
    table["lora"] = {**lora, **table.get("lora", {})}
    table["training"] = {**defaults, **table.get("training", {}), **training}
    return fill(AdaptRecipe, table)


def resumed_recipe(out: Path) -> AdaptRecipe:
    """The recipe that a run was started with. Errors: UsageError where there is none."""
    return fill(AdaptRecipe, read_recipe(RunFolder(out).recipe))


def adapt(
    recipe: AdaptRecipe,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    observers: tuple[Observer, ...] = (),
) -> AdaptResult:
    """Train an adapter for the recipe's base into `out`/adapter; with `resume`, go on from the latest checkpoint."""
    place, config = choose_device(device), recipe.training
    with open_run(out, recipe, resume=resume) as folder:
        peak = PeakMemory(place)
        loaded = load(recipe.base, device=place)
        rows, held_out, counts = _rows(recipe, loaded)
        attach(loaded.llama, recipe.lora, config.seed)
        batches = [
            collate(held_out[start : start + config.micro_batch]).to(place)
            for start in range(0, len(held_out), config.micro_batch)
        ]
        source = RecordSource(rows, config.batch, config.micro_batch, config.seed)
        state = run_training(
            folder,
            loaded.llama,
            config,
            source,
            lambda: evaluate_windows(loaded.llama, batches).nats_per_token,
            observers,
        )
        growth = peak.growth_bytes()
        adapter = replace(adapter_of(loaded.llama), base_sha256=weights_sha256(recipe.base))
        save_adapter(adapter, out / "adapter", base=str(recipe.base.resolve()))
    return _result(state, counts, growth, recipe, loaded, out / "adapter")


def merge(adapter: str | Path, out: Path, *, base_model: str | Path | None = None, text: str = "") -> MergeResult:
    """Fold an adapter into its base in float32, prove it on a text, save the merged model in `out`."""
    base = find_base(adapter) if base_model is None else find_model(base_model)
    attached, merged = load(base, adapter=adapter), load(base, adapter=adapter)
    merge_into_base(merged.llama)
    proof = attached.tokenizer.encode(text if text else _PROOF_TEXT, bos=True)[:_PROOF_TOKENS]
    agreement = compare_logits(attached.llama, merged.llama, torch.tensor([proof]))
    save_folder(merged.llama, out, merged.tokenizer)
    return MergeResult(
        max_logit_difference=agreement.max_logit_difference,
        largest_logit=agreement.largest_logit,
        kl_nats=agreement.kl_nats,
        model=str(out),
    )


def adapt_rows(result: AdaptResult) -> list[tuple[str, str]]:
    """The result as lines for people."""
    return [
        ("records", f"{result.records.used:,} used, {result.records.dropped:,} dropped"),
        ("trainable parameters", f"{result.trainable_parameters:,}"),
        ("steps", f"{result.steps:,}"),
        ("tokens per second", human_number(result.tokens_per_second)),
        ("loss, nats per token", f"{result.loss_first:.3f} -> {result.loss_last:.3f}"),
        ("held-out nats per token", f"{result.validation_nats:.3f}"),
        ("peak memory", f"{human_bytes(result.peak_bytes)} (planned {human_bytes(result.planned_peak_bytes)})"),
        ("adapter", result.adapter),
    ]


_PROOF_TEXT = (
    "A llama carries what it is given: one word after another, each step no longer than the last. "
    "def carry(load):\n    return [step for step in load if step is not None]\n"
    "The same numbers, added in another order, differ in the last digit; in float32 that is all the difference there is."
)


def _rows(recipe: AdaptRecipe, loaded: LoadedModel) -> tuple[list[Row], list[Row], RecordCounts]:
    """Packed rows to learn from and held-out rows: a file of its own, or the last tenth of the records."""
    seq, seed = recipe.training.seq, recipe.training.seed
    if seq > loaded.config.max_seq_len:
        raise UsageError(f"training.seq: expected at most the context of {loaded.config.max_seq_len}, got {seq}")
    records, counts = read_records(recipe.data)
    if recipe.validation is not None:
        held_out, _ = read_records([recipe.validation])
    else:
        cut = len(records) - max(1, len(records) // _HELD_OUT_SHARE)
        records, held_out = records[:cut], records[cut:]
    parts = [list(encode_records(part, loaded.tokenizer, seq)) for part in (records, held_out)]
    if not all(parts):
        raise BadData(f"{counts.used} records are too few to learn from and to hold one out", "add records")
    rows, held_out_rows = (pack_records(part, seq, seed) for part in parts)
    return rows, held_out_rows, counts


def _result(
    state: TrainState, counts: RecordCounts, growth: int, recipe: AdaptRecipe, loaded: LoadedModel, adapter: Path
) -> AdaptResult:
    assert state.first_nats is not None
    assert state.last_nats is not None
    assert state.validation_nats is not None
    config = recipe.training
    method = LoraTraining(rank=recipe.lora.rank, targets=recipe.lora.targets)
    settings = Settings(method=method, seq=config.seq, batch=min(config.batch, config.micro_batch), base="float32")
    return AdaptResult(
        trainable_parameters=sum(weight.numel() for weight in trainable(loaded.llama).values()),
        steps=state.done.steps,
        tokens=state.done.tokens,
        tokens_per_second=state.done.tokens / state.done.seconds,
        loss_first=state.first_nats,
        loss_last=state.last_nats,
        validation_nats=state.validation_nats,
        peak_bytes=growth,
        planned_peak_bytes=peak_memory(loaded.config, settings, runtime_bytes=0).total,
        records=counts,
        adapter=str(adapter),
    )
