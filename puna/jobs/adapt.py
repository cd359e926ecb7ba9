"""Fine-tuning: a model and records -> an adapter that PEFT loads, or, with every weight trained, a model."""

from pathlib import Path
from typing import Any

import torch

from puna.adaptation.rows import RecordSource, rows_sha256
from puna.adaptation.streaming import stream_layers
from puna.adaptation.targets import adapter_of, attach, relative_update
from puna.arch.config import ModelConfig
from puna.jobs.adapt_data import PackedData, pack_data
from puna.jobs.adapt_judge import AnsweredPrompt, Judge
from puna.jobs.adapt_recipe import AdaptRecipe, planned_settings
from puna.jobs.adapt_report import AdaptResult, Change, adapt_rows, adapter_card, change_sections
from puna.jobs.compressed import compressed_sizes
from puna.jobs.fitting import ensure_fits
from puna.jobs.load import LoadedModel, find_model, load
from puna.jobs.machine import choose_device
from puna.jobs.peak import PeakMemory
from puna.jobs.run_folder import RunFolder, open_run, run_training, take_best
from puna.jobs.run_report import learning_sections, write_run_report, write_unfinished_report
from puna.jobs.sections import memory_section, read_history
from puna.planning.memory import PROCESS_BYTES, Memory, peak_memory
from puna.report.labels import check_language
from puna.report.page import Section
from puna.training.checkpoint import TrainState
from puna.training.events import Observer
from puna.training.optimizer import trainable
from puna.weights.adapters import save_adapter
from puna.weights.folder import save_folder
from puna.weights.headers import read_header, read_stored
from puna.weights.loading import weights_sha256

__all__ = ["adapt", "planned_memory"]


def adapt(
    recipe: AdaptRecipe,
    out: str | Path,
    *,
    resume: bool = False,
    anyway: bool = False,
    device: str = "auto",
    memory_bytes: int | None = None,
    observers: tuple[Observer, ...] = (),
    tensorboard: bool | None = None,
    lang: str = "en",
) -> AdaptResult:
    """Train an adapter into `out`/adapter, or every weight into `out`/model; with `resume`, from the latest checkpoint.

    A finished run is not trained further: its result is made again from its checkpoints.
    Args:   anyway: learn from what can be learned, whatever the lint of the records says, and even where the plan is larger
            than the memory. memory_bytes: what there is; None: what is free.
            tensorboard: whether to write event files for it; None: where it is installed. lang: the report's.
    Errors: BadData, CheckpointMismatch, DiskFull, DoesNotFit, Interrupted (after saving), MissingExtra, NonFiniteLoss, RunLocked,
            UsageError.
    """
    check_language(lang)
    out, place = Path(out), choose_device(device)
    _ensure_fits(recipe, place, resume=resume, anyway=anyway, memory_bytes=memory_bytes)
    with open_run(out, recipe, resume=resume) as folder:
        peak = PeakMemory(place)
        loaded = _load(recipe, place)
        packed = pack_data(
            recipe.data, recipe.validation, recipe.records, loaded, seq=recipe.training.seq, anyway=anyway
        )
        config = recipe.training.for_rows(len(packed.rows))
        digest = rows_sha256(packed.rows)
        _prepare(recipe, loaded, place)
        judges = Judge(loaded, packed, config.micro_batch, recipe.old, answers=not recipe.is_streamed)
        before, answered = judges.everything(), judges.answers()  # a fresh adapter is its base exactly
        state = run_training(
            folder, loaded.llama, config, RecordSource(packed.rows, config.batch, config.micro_batch, config.seed),
            judges.held_out, observers, peak=peak, data={"the records": digest},
            show=lambda state, is_stopped: write_unfinished_report(
                folder, "adapt", state, config, _sections(lang, folder, recipe, loaded, state),
                is_stopped=is_stopped, lang=lang,
            ),
            tensorboard=tensorboard,
        )  # fmt: skip
        step, nats = take_best(folder, loaded.llama, state) if recipe.keep == "best" else (state.done.steps, None)
        after = (judges.new() if nats is None else nats, judges.old())
        change = Change(step=step, before=before, after=after)
        result = _result(recipe, loaded, state, packed, change, judges.compare(answered), folder)
        _save(recipe, loaded, result, digest)
        sections = *change_sections(lang, result), *_sections(lang, folder, recipe, loaded, state)
        write_run_report(folder, "adapt", adapt_rows(result, lang), sections, lang)
    return result


def planned_memory(recipe: AdaptRecipe, config: ModelConfig) -> Memory:
    """The planner's peak for this run, for a process on a CPU."""
    held = compressed_sizes(read_stored(find_model(recipe.base)))
    return peak_memory(config, planned_settings(recipe, held), runtime_bytes=PROCESS_BYTES)


def _ensure_fits(recipe: AdaptRecipe, device: torch.device, **given: Any) -> None:
    """Refuse a plan that is larger than the memory. Args: given: as for ensure_fits."""
    stored = read_stored(find_model(recipe.base))
    stored.model.require_llama(recipe.base)
    ensure_fits(stored.model, planned_settings(recipe, compressed_sizes(stored)), device, **given)


def _load(recipe: AdaptRecipe, device: torch.device) -> LoadedModel:
    """The base; in host memory where only parts of it go to the device."""
    place = torch.device("cpu") if recipe.is_streamed else device
    return load(
        recipe.base, device=place, base=recipe.base_type, dtype=_dtype(recipe), mapped=recipe.mapped,
        integer_products=recipe.integer_products,
    )  # fmt: skip


def _prepare(recipe: AdaptRecipe, loaded: LoadedModel, device: torch.device) -> None:
    """Put the fresh adapter in, and what stays in host memory in its place."""
    if recipe.lora is not None:
        attach(loaded.llama, recipe.lora, recipe.training.seed)
    if recipe.is_streamed:
        pinned = False if recipe.mapped else None
        stream_layers(loaded.llama, recipe.streamed_layers, device, embedding=recipe.streamed_embedding, pinned=pinned)


def _dtype(recipe: AdaptRecipe) -> torch.dtype | None:
    """The products beside a rounded base are in the run's precision; otherwise the base's type says it."""
    if recipe.base_type not in ("bfloat16", "int8", "nf4"):
        return None
    return torch.bfloat16 if recipe.training.precision == "bfloat16" else torch.float32


def _save(recipe: AdaptRecipe, loaded: LoadedModel, result: AdaptResult, data_sha256: str) -> None:
    if result.model is not None:
        save_folder(loaded.llama, Path(result.model), loaded.tokenizer, base=read_header(recipe.base))
    if result.adapter is not None:
        adapter = adapter_of(loaded.llama, base_sha256=weights_sha256(recipe.base), base_type=recipe.base_type)
        card = adapter_card(recipe, result, data_sha256, beside_corrected=adapter.beside_corrected)
        save_adapter(adapter, Path(result.adapter), base=str(recipe.base.resolve()), card=card)


def _sections(
    lang: str, folder: RunFolder, recipe: AdaptRecipe, loaded: LoadedModel, state: TrainState
) -> tuple[Section, ...]:
    plan = planned_memory(recipe, loaded.config)
    return *learning_sections(lang, folder), memory_section(lang, plan, state.peak_bytes)


def _result(
    recipe: AdaptRecipe,
    loaded: LoadedModel,
    state: TrainState,
    packed: PackedData,
    change: Change,
    answers: list[AnsweredPrompt],
    folder: RunFolder,
) -> AdaptResult:
    assert state.first_nats is not None
    assert state.last_nats is not None
    return AdaptResult(
        trainable_parameters=sum(weight.numel() for weight in trainable(loaded.llama).values()),
        steps=state.done.steps,
        tokens=state.done.tokens,
        tokens_per_second=state.done.tokens / state.done.seconds,
        loss_first=state.first_nats,
        loss_last=state.last_nats,
        validation_nats=change.after[0],
        validation_by_source=read_history(folder.metrics).by_source_at(change.step),
        change=change,
        answers=answers,
        relative_update=None if recipe.lora is None or recipe.is_streamed else relative_update(loaded.llama),
        peak_bytes=state.peak_bytes,
        planned_peak_bytes=planned_memory(recipe, loaded.config).total,
        records=packed.counts,
        held_out_records=packed.held_out_records,
        adapter=None if recipe.lora is None else str(folder.path / "adapter"),
        model=str(folder.path / "model") if recipe.lora is None else None,
    )
