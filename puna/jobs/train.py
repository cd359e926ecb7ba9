"""Pretraining: token shards -> a model folder, through checkpoints that survive any interruption."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from puna.arch.config import ModelConfig
from puna.errors import BadData, CheckpointMismatch
from puna.jobs.fitting import device_memory, ensure_fits
from puna.jobs.held_out import first_words, hold_out, judge, windows_to_judge, write_sample
from puna.jobs.machine import available_bytes, choose_device
from puna.jobs.mixing import MANY_EPOCHS, Mixing, mix
from puna.jobs.peak import PeakMemory
from puna.jobs.run_folder import RunFolder, open_run, run_training
from puna.jobs.run_report import (
    learning_sections,
    peak_row,
    source_rows,
    sources_section,
    write_run_report,
    write_unfinished_report,
)
from puna.jobs.sections import memory_section, model_section, read_history
from puna.jobs.train_recipe import TrainRecipe
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.planning.counting import attended_share, parameter_count
from puna.planning.memory import PROCESS_BYTES, Memory, peak_memory
from puna.planning.settings import FullTraining, Settings
from puna.report.labels import check_language, label
from puna.report.numbers import human_number
from puna.report.page import Section
from puna.tokens.shards import Shards, open_shards
from puna.tokens.tokenizer import load_tokenizer
from puna.training.batches import RowSource
from puna.training.checkpoint import TrainState
from puna.training.config import TrainingConfig
from puna.training.events import Observer
from puna.training.rows import cut_rows
from puna.weights.folder import save_folder
from puna.weights.headers import read_header
from puna.weights.loading import load_llama
from puna.weights.vocabulary import tokenizer_of

__all__ = [
    "DryRun",
    "TrainResult",
    "dry_run",
    "plan_rows",
    "planned_memory",
    "planned_settings",
    "train",
    "train_rows",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What `puna train --json` prints."""

    steps: int
    tokens: int
    tokens_per_second: float
    loss_first: float
    loss: float
    validation_nats: float
    validation_by_source: dict[str, float]
    peak_bytes: int
    planned_peak_bytes: int
    seconds: float
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What `puna train --dry-run` prints.

    tokens, shares, epochs: of each source what there is to train on, its share of what is read, and how often it will
                            be read; epochs are empty where the clock decides.
    padding: of each source the share of its rows that holds nothing.
    attention, attended_share: the pattern's kind, and of the pairs that causal attention sees in a row the share that it sees.
    available_bytes, fits: what the device has free now, and whether the plan is within it.
    """

    parameters: int
    bytes: Memory
    planned_peak_bytes: int
    available_bytes: int
    fits: bool
    tokens: dict[str, int]
    shares: dict[str, float]
    epochs: dict[str, float]
    padding: dict[str, float]
    attention: str
    attended_share: float


def train(
    recipe: TrainRecipe,
    out: str | Path,
    *,
    resume: bool = False,
    anyway: bool = False,
    device: str = "auto",
    memory_bytes: int | None = None,
    observers: tuple[Observer, ...] = (),
    tensorboard: bool | None = None,
    lang: str = "en",
    tell: Callable[[str], None] = lambda _: None,
) -> TrainResult:
    """Train the recipe's model into the run folder `out`; with `resume`, go on from its latest checkpoint.

    A finished run is not trained further: its result is made again from its last checkpoint.
    Args:   anyway: train even where the plan is larger than the memory. memory_bytes: what there is; None: what is free.
            tensorboard: write event files; None: where it is installed. lang: the report's. tell: is given each source's line.
    Errors: BadData, CheckpointMismatch, DiskFull, DoesNotFit, Interrupted (after saving), MissingExtra, NonFiniteLoss, RunLocked,
            UsageError.
    """
    check_language(lang)
    out, place, config = Path(out), choose_device(device), recipe.training
    ensure_fits(recipe.model, planned_settings(config), place, resume=resume, anyway=anyway, memory_bytes=memory_bytes)
    with open_run(out, recipe, resume=resume) as folder:
        training, held_out = _open_data(recipe)
        mixing = _mix(recipe, training)
        for name, words in plan_rows(_plan(recipe, mixing, place)):
            tell(f"{name}: {words}")
        tokenizer = load_tokenizer(recipe.data[0].path / "tokenizer")
        prompt = first_words(next(iter(held_out.values())), tokenizer, recipe.model.max_seq_len)
        peak = PeakMemory(place)
        model = _build(recipe).to(place)
        windows, sections = windows_to_judge(held_out, config), partial(_sections, lang, folder, recipe, mixing)
        state = run_training(
            folder,
            model,
            config,
            RowSource(mixing.rows, mixing.mixture, config, mixing.names),
            lambda: judge(model, windows),
            observers,
            peak=peak,
            data={name: part.sha256 for name, part in zip(mixing.names, training, strict=True)},
            show=lambda state, is_stopped: write_unfinished_report(
                folder, "train", state, config, sections(state), is_stopped=is_stopped, lang=lang
            ),
            sample=lambda step: write_sample(model, tokenizer, prompt, step, config.seed),
            tensorboard=tensorboard,
        )
        result = _result(state, recipe, folder)
        save_folder(model, out / "model", tokenizer)
        write_run_report(folder, "train", train_rows(result, lang), sections(state), lang)
    return result


def dry_run(recipe: TrainRecipe, device: str = "auto") -> DryRun:
    """What `train` would do: the plan of its memory, and how often each source would be read. Writes nothing."""
    training, _ = _open_data(recipe)
    return _plan(recipe, _mix(recipe, training), choose_device(device))


def plan_rows(plan: DryRun) -> list[tuple[str, str]]:
    """What each source will give, as (its name, words); those read more than about 4 times with a warning."""
    rows = []
    for name, tokens in plan.tokens.items():
        words = [f"{tokens:,} tokens", f"{plan.shares[name]:.1%} of what is read"]
        words += [f"{plan.padding[name]:.2%} padding"] if plan.padding[name] else []
        words += [f"{plan.epochs[name]:.2f} epochs"] if name in plan.epochs else []
        is_worn = plan.epochs.get(name, 0.0) > MANY_EPOCHS
        warning = f"; beyond about {MANY_EPOCHS} each new one teaches less and less" if is_worn else ""
        rows.append((name, ", ".join(words) + warning))
    if plan.attention != "causal":
        seen = f"{plan.attended_share:.1%} of what causal attention sees"
        rows.append((plan.attention, seen if plan.attended_share < 1 else "no narrower than a row: causal attention"))
    return rows


def _plan(recipe: TrainRecipe, mixing: Mixing, place: torch.device) -> DryRun:
    visits = [each.epochs for each in mixing.planned(recipe.training) or ()]
    plan, there = device_memory(recipe.model, planned_settings(recipe.training), place), available_bytes(place)
    return DryRun(
        parameters=parameter_count(recipe.model),
        bytes=plan,
        planned_peak_bytes=plan.total,
        available_bytes=there,
        fits=plan.total <= there,
        tokens={name: each.tokens for name, each in zip(mixing.names, mixing.rows, strict=True)},
        shares=dict(zip(mixing.names, mixing.shares(), strict=True)),
        epochs=dict(zip(mixing.names, visits, strict=False)),
        padding={name: each.padding for name, each in zip(mixing.names, mixing.rows, strict=True)},
        attention=recipe.model.pattern.kind,
        attended_share=attended_share(recipe.model, recipe.training.seq),
    )


def train_rows(result: TrainResult, lang: str = "en") -> list[tuple[str, str]]:
    """The result as lines for people."""
    return [
        (label(lang, "run.row.steps"), f"{result.steps:,}"),
        (label(lang, "run.row.tokens"), f"{result.tokens:,}"),
        (label(lang, "run.row.speed"), human_number(result.tokens_per_second)),
        (label(lang, "run.row.loss"), f"{result.loss_first:.3f} → {result.loss:.3f}"),
        (label(lang, "run.row.held_out"), f"{result.validation_nats:.3f}"),
        *source_rows(lang, result.validation_by_source),
        peak_row(lang, result.peak_bytes, result.planned_peak_bytes),
        (label(lang, "run.row.model"), result.model),
    ]


def planned_memory(config: ModelConfig, training: TrainingConfig) -> Memory:
    """The planner's peak for this run, for a process on a CPU."""
    return peak_memory(config, planned_settings(training), runtime_bytes=PROCESS_BYTES)


def planned_settings(training: TrainingConfig) -> Settings:
    """What the planner is asked about a run."""
    return Settings(
        method=FullTraining(),
        seq=training.seq,
        batch=min(training.batch, training.micro_batch),
        base="float32",
        checkpointing=training.checkpoint_activations,
        packed=training.packing == "documents",
        autocast=training.precision != "float32",
        accumulates=training.batch > training.micro_batch,
    )


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


def _open_data(recipe: TrainRecipe) -> tuple[list[Shards], dict[str, Shards]]:
    """Training parts, and held-out ones by name: a folder of its own, or the end of each source.

    Errors: BadData naming a source of too few documents; CheckpointMismatch where one was made with another tokenizer.
    """
    shards = {str(source.path): open_shards(source.path) for source in recipe.data}
    held_out = {} if recipe.validation is None else {str(recipe.validation): open_shards(recipe.validation)}
    _check_tokenizer({**shards, **held_out}, recipe)
    if held_out:
        return list(shards.values()), held_out
    training = []
    for name, part in shards.items():
        with _named(name):
            first, held_out[name] = hold_out(part)
        training.append(first)
    return training, held_out


def _check_tokenizer(shards: Mapping[str, Shards], recipe: TrainRecipe) -> None:
    known = {name: part.tokenizer_sha256 for name, part in shards.items()}
    if recipe.start is not None and (own := tokenizer_of(read_header(recipe.start))) is not None:
        known = {str(recipe.start): own.sha256, **known}
    first, expected = next(iter(known.items()))
    for name, sha256 in known.items():
        if sha256 != expected:
            raise CheckpointMismatch(
                f"{name} was made with another tokenizer than {first}",
                "build all token shards anew with the same --tokenizer",
            )
    needed = next(iter(shards.values())).vocab_size
    if needed > recipe.model.vocab_size:
        raise CheckpointMismatch(
            f"model.vocab_size: expected at least the tokenizer's {needed}, got {recipe.model.vocab_size}",
            "leave out model.vocab_size: the data's tokenizer gives it",
        )


def _mix(recipe: TrainRecipe, training: Sequence[Shards]) -> Mixing:
    names = [str(source.path) for source in recipe.data]
    rows = []
    for name, part in zip(names, training, strict=True):
        with _named(name):
            rows.append(cut_rows(part, recipe.training))
    return mix(names, rows, [source.weight for source in recipe.data], recipe.mixture, recipe.training)


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Bad data are those of this source."""
    try:
        yield
    except BadData as error:
        raise BadData(f"{source}: {error.message}", error.hint) from None


def _sections(
    lang: str, folder: RunFolder, recipe: TrainRecipe, mixing: Mixing, state: TrainState
) -> tuple[Section, ...]:
    done, config = state.done, recipe.training
    tokens = done.tokens // done.steps if done.steps else config.batch * config.seq
    return (
        model_section(lang, recipe.model, done.steps, tokens),
        *learning_sections(lang, folder),
        sources_section(lang, mixing.read(state.batches_read * config.batch, config)),
        memory_section(lang, planned_memory(recipe.model, config), state.peak_bytes),
    )


def _result(state: TrainState, recipe: TrainRecipe, folder: RunFolder) -> TrainResult:
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
        validation_by_source=read_history(folder.metrics).validation_by_source[-1],
        peak_bytes=state.peak_bytes,
        planned_peak_bytes=planned_memory(recipe.model, recipe.training).total,
        seconds=state.done.seconds,
        model=str(folder.path / "model"),
    )
