"""The main job, end to end on real text: tokenizer, plan, training, LoRA, compression, evaluation, text, report.

Stopped at any moment, it keeps what was finished; the same command goes on from there.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from puna.arch.modules import LINEARS
from puna.arch.presets import find_preset
from puna.errors import FormatError
from puna.evaluation.perplexity import Likelihood, evaluate_text
from puna.evaluation.unigram import byte_unigram_bits_per_byte, token_unigram_bits_per_byte
from puna.files import lock_folder, remove_folder, staged_folder, sweep_stale, write_text
from puna.jobs.adapt import AdaptRecipe, AdaptResult, MergeResult, adapt, merge
from puna.jobs.compress import Compressed, calibration_windows, compare
from puna.jobs.demo_report import DemoFacts, Sample, Scores, TextFacts, write_report
from puna.jobs.demo_text import DemoText, gather_text
from puna.jobs.doctor import choose_precision
from puna.jobs.load import LoadedModel, load
from puna.jobs.recipe import dump_recipe
from puna.jobs.run_folder import RunFolder
from puna.jobs.train import DataSource, TrainRecipe, train
from puna.model.linears.lora import LoraSettings
from puna.report.numbers import human_seconds
from puna.text.corpus import Document, split_documents
from puna.tokens.learning import learn_tokenizer
from puna.tokens.shards import Shards, build_shards, open_shards
from puna.tokens.tokenizer import Tokenizer, load_tokenizer
from puna.training.config import TimeBudget, TrainingConfig
from puna.training.loop import Observer

__all__ = ["DemoRecipe", "DemoResult", "demo", "demo_rows"]

_KEEPS = (0.9, 0.8, 0.6)
_HELD_OUT = 0.04
_JUDGED_BYTES = 1 << 18
_ADAPT_SHARE = 0.3
_RANK = 16
_PARTS = ("recipe.toml", "report.html", "tokenizer", "shards", "second", "train", "adapt", "merged")
_BYTES_PER_TOKEN_TYPE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRecipe:
    """`seconds` is the pretraining phase; `text` a folder of the user's own."""

    seconds: float = 90.0
    seed: int = 0
    text: Path | None = None
    lang: Literal["en", "zh"] = "en"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """How long a part of the job took; a part that an earlier sitting had finished counts what reading it back took."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainNumbers:
    """Pretraining, judged on held-out documents."""

    tokens: int
    tokens_per_second: float
    loss_first: float
    loss_last: float
    validation_nats: float
    bits_per_byte: float
    token_unigram_bits_per_byte: float
    byte_unigram_bits_per_byte: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptNumbers:
    """Nats per token on held-out documents of the new and the old kind, before and after adaptation."""

    new_before: float
    new_after: float
    old_before: float
    old_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateNumbers:
    """What the model wrote."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What `puna demo --json` prints."""

    report: str
    model: str
    seconds: float
    steps: list[StepTime]
    train: TrainNumbers
    adapt: AdaptNumbers
    compress: list[Compressed]
    generate: GenerateNumbers


class Clock:
    """Times the parts of the job and tells which one begins."""

    def __init__(self, on_step: Callable[[str], None]) -> None:
        self.steps: list[StepTime] = []
        self._on_step = on_step
        self._started = time.monotonic()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One part."""
        self._on_step(name)
        started = time.monotonic()
        yield
        self.steps.append(StepTime(name=name, seconds=time.monotonic() - started))

    @property
    def seconds(self) -> float:
        """Since the clock was made."""
        return time.monotonic() - self._started


def demo(
    recipe: DemoRecipe,
    out: Path,
    *,
    on_step: Callable[[str], None] = lambda _: None,
    observers: tuple[Observer, ...] = (),
) -> DemoResult:
    """Run the main job into `out`; a finished or different demo that stands there is replaced.

    Errors: BadData, DiskFull, Interrupted (after saving), RunLocked.
    """
    clock = Clock(on_step)
    with lock_folder(out):
        _prepare(out, recipe)
        with clock.step("gather"):
            text = gather_text(recipe.text)
            old, old_held_out = split_documents(text.documents, _HELD_OUT, seed=recipe.seed)
            new, new_held_out = split_documents(text.second, _HELD_OUT, minimum=3, seed=recipe.seed)
        with clock.step("tokenizer"):
            tokenizer = _tokenizer(out / "tokenizer", old)
        with clock.step("shards"):
            shards = _shards(out / "shards" / "train", old, tokenizer)
            _shards(out / "shards" / "held_out", old_held_out, tokenizer)
        train_recipe = _train_recipe(recipe, out, tokenizer)
        with clock.step("train"):
            trained = train(train_recipe, out / "train", resume=True, observers=observers)
        base = load(trained.model)
        judged = _texts(old_held_out), _texts(new_held_out)
        with clock.step("evaluate"):
            before = [evaluate_text(base.llama, base.tokenizer, *texts) for texts in judged]
            scores = _scores(before[0], shards, old, judged[0], base.tokenizer)
        with clock.step("adapt"):
            adapted, merged = _adapt(recipe, out, new, new_held_out, train_recipe, observers)
            attached = load(trained.model, adapter=adapted.adapter)
            after = [evaluate_text(attached.llama, attached.tokenizer, *texts) for texts in judged]
        with clock.step("compress"):
            windows = calibration_windows(tokenizer, _texts(old, 1 << 20), train_recipe.training.seq)
            compressed = compare(base.llama, base.tokenizer, windows, before[0], judged[0], _KEEPS)
        with clock.step("generate"):
            samples = _samples(recipe, base, attached, judged)
        with clock.step("report"):
            facts = DemoFacts(
                lang=recipe.lang,
                seed=recipe.seed,
                text=_text_facts(text, recipe, old_held_out, shards),
                train=trained,
                recipe=train_recipe,
                train_tokens=len(shards),
                metrics=RunFolder(out / "train").metrics,
                scores=scores,
                adapt=adapted,
                adapt_rank=_RANK,
                adapt_numbers=(before[1], after[1], before[0], after[0]),
                merge=merged,
                compress=compressed,
                samples=samples,
                steps=[(step.name, step.seconds) for step in clock.steps],
                seconds=clock.seconds,
                out=out,
            )
            write_text(out / "report.html", write_report(facts))
    return _result(out, clock, facts)


def demo_rows(result: DemoResult) -> list[tuple[str, str]]:
    """The result as lines for people."""
    train, adapted = result.train, result.adapt
    shrunk = [
        (f"{each.method} {'' if each.keep is None else f'{each.keep:.0%}'}".strip(), each) for each in result.compress
    ]
    return [
        ("tokens trained on", f"{train.tokens:,} at {train.tokens_per_second:,.0f} per second"),
        ("loss, nats per token", f"{train.loss_first:.3f} -> {train.loss_last:.3f}"),
        ("bits per byte, held out", f"{train.bits_per_byte:.3f}"),
        ("  token frequencies alone", f"{train.token_unigram_bits_per_byte:.3f}"),
        ("  byte frequencies alone", f"{train.byte_unigram_bits_per_byte:.3f}"),
        ("LoRA, new text", f"{adapted.new_before:.3f} -> {adapted.new_after:.3f} nats"),
        ("LoRA, old text", f"{adapted.old_before:.3f} -> {adapted.old_after:.3f} nats"),
        *((f"{name}, added nats", f"{each.added_nats:+.4f}") for name, each in shrunk),
        ("time", human_seconds(result.seconds)),
    ]


def _prepare(out: Path, recipe: DemoRecipe) -> None:
    """Keep what an unfinished demo of the same recipe has made; clear away everything else that a demo makes."""
    sweep_stale(out)
    text = dump_recipe(recipe)
    recorded = out / "recipe.toml"
    same = recorded.exists() and recorded.read_text(encoding="utf-8") == text
    if not same or (out / "report.html").exists():
        for name in _PARTS:
            remove_folder(out / name)
        write_text(recorded, text)


def _tokenizer(folder: Path, documents: Sequence[Document]) -> Tokenizer:
    """Learn the tokenizer, or read back the one that an earlier sitting learned."""
    if not folder.exists():
        text_bytes = sum(len(document.text.encode()) for document in documents)
        vocab_size = min(find_preset("small").config.vocab_size, max(384, text_bytes // _BYTES_PER_TOKEN_TYPE))
        learned = learn_tokenizer((document.text for document in documents), vocab_size)
        with staged_folder(folder) as temporary:
            learned.save(temporary)
    return load_tokenizer(folder)


def _shards(folder: Path, documents: Sequence[Document], tokenizer: Tokenizer) -> Shards:
    try:
        return open_shards(folder)
    except FormatError:
        return build_shards(documents, tokenizer, folder)


def _train_recipe(recipe: DemoRecipe, out: Path, tokenizer: Tokenizer) -> TrainRecipe:
    return TrainRecipe(
        model=replace(find_preset("small").config, vocab_size=tokenizer.vocab_size),
        training=TrainingConfig(
            budget=TimeBudget(seconds=recipe.seconds),
            batch=8,
            micro_batch=8,
            seq=256,
            learning_rate=4e-3,
            precision=choose_precision("auto"),
            seed=recipe.seed,
            validate_every=50,
            checkpoint_every=50,
        ),
        data=(DataSource(path=out / "shards" / "train"),),
        validation=out / "shards" / "held_out",
    )


def _adapt(
    recipe: DemoRecipe,
    out: Path,
    new: Sequence[Document],
    new_held_out: Sequence[Document],
    train_recipe: TrainRecipe,
    observers: tuple[Observer, ...],
) -> tuple[AdaptResult, MergeResult]:
    records = out / "second" / "train.jsonl", out / "second" / "held_out.jsonl"
    for path, documents in zip(records, (new, new_held_out), strict=True):
        lines = (json.dumps({"text": document.text}, ensure_ascii=False) + "\n" for document in documents)
        write_text(path, "".join(lines))
    budget = TimeBudget(seconds=recipe.seconds * _ADAPT_SHARE)
    adapt_recipe = AdaptRecipe(
        base=out / "train" / "model",
        data=(records[0],),
        validation=records[1],
        lora=LoraSettings(rank=_RANK, alpha=2.0 * _RANK, targets=LINEARS),
        training=replace(train_recipe.training, budget=budget, learning_rate=2e-3, weight_decay=0.0),
    )
    adapted = adapt(adapt_recipe, out / "adapt", resume=True, observers=observers)
    merged = merge(out / "adapt" / "adapter", out / "merged", base_model=adapt_recipe.base)
    return adapted, merged


def _texts(documents: Sequence[Document], most_bytes: int = _JUDGED_BYTES) -> list[str]:
    """Documents in order up to a number of bytes, at least one."""
    texts: list[str] = []
    total = 0
    for document in documents:
        total += len(document.text.encode())
        if texts and total > most_bytes:
            break
        texts.append(document.text)
    return texts


def _scores(
    likelihood: Likelihood, shards: Shards, train: Sequence[Document], held_out: Sequence[str], tokenizer: Tokenizer
) -> Scores:
    """The model and two models without context, all fitted on the training split, on the same held-out bytes."""
    ids = np.concatenate([tokenizer.encode(text) for text in held_out])
    token_counts = np.bincount(shards.tokens, minlength=tokenizer.vocab_size)
    data = "".join(document.text for document in train).encode()
    byte_counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    held_out_bytes = "".join(held_out).encode()
    return Scores(
        bits_per_byte=likelihood.bits_per_byte,
        token_unigram=token_unigram_bits_per_byte(token_counts, ids, len(held_out_bytes)),
        byte_unigram=byte_unigram_bits_per_byte(byte_counts, held_out_bytes),
        nats_per_token=likelihood.nats_per_token,
        bytes_per_token=len(held_out_bytes) / len(ids),
    )


def _samples(
    recipe: DemoRecipe, base: LoadedModel, attached: LoadedModel, judged: tuple[list[str], list[str]]
) -> list[Sample]:
    """Text from both models, begun with the first words of held-out documents."""
    wanted = ((base, judged[0][0], 0.8, 160), (base, judged[0][-1], 0.0, 96), (attached, judged[1][0], 0.8, 160))
    samples = []
    for model, document, temperature, tokens in wanted:
        prompt = model.tokenizer.decode(model.tokenizer.encode(document)[:12]).removesuffix("\ufffd")
        completion = model.generate(
            prompt, max_new_tokens=tokens, temperature=temperature, top_p=0.95, seed=recipe.seed
        )
        samples.append(
            Sample(prompt=prompt, completion=completion, temperature=temperature, is_adapted=model is attached)
        )
    return samples


def _text_facts(text: DemoText, recipe: DemoRecipe, held_out: Sequence[Document], shards: Shards) -> TextFacts:
    return TextFacts(
        name=text.name,
        second_name=text.second_name,
        folder="" if recipe.text is None else recipe.text.name,
        documents=len(text.documents),
        bytes=sum(len(document.text.encode()) for document in text.documents),
        duplicates=text.corpus.duplicates,
        held_out=len(held_out),
        bytes_per_token=shards.bytes / len(shards),
    )


def _result(out: Path, clock: Clock, facts: DemoFacts) -> DemoResult:
    new_before, new_after, old_before, old_after = (each.nats_per_token for each in facts.adapt_numbers)
    trained, scores, sample = facts.train, facts.scores, facts.samples[0]
    return DemoResult(
        report=str(out / "report.html"),
        model=trained.model,
        seconds=clock.seconds,
        steps=clock.steps,
        train=TrainNumbers(
            tokens=trained.tokens,
            tokens_per_second=trained.tokens_per_second,
            loss_first=trained.loss_first,
            loss_last=trained.loss,
            validation_nats=trained.validation_nats,
            bits_per_byte=scores.bits_per_byte,
            token_unigram_bits_per_byte=scores.token_unigram,
            byte_unigram_bits_per_byte=scores.byte_unigram,
        ),
        adapt=AdaptNumbers(new_before=new_before, new_after=new_after, old_before=old_before, old_after=old_after),
        compress=facts.compress,
        generate=GenerateNumbers(text=sample.prompt + sample.completion.text),
    )
