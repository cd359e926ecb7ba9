"""The main job, end to end on real text: tokenizer, plan, training, LoRA, compression, evaluation, text, report.

Stopped at any moment, it keeps what was finished; the same command goes on from there.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from puna.arch.modules import LINEARS
from puna.arch.presets import find_preset
from puna.errors import UsageError
from puna.evaluation.perplexity import Likelihood, evaluate_text
from puna.evaluation.unigram import byte_unigram_bits_per_byte, token_unigram_bits_per_byte
from puna.files import lock_folder, remove_folder, sweep_stale, write_text
from puna.jobs.adapt import adapt
from puna.jobs.adapt_recipe import AdaptRecipe
from puna.jobs.adapt_report import AdaptResult
from puna.jobs.calibration import calibration_windows
from puna.jobs.demo_facts import DemoFacts, Sample, Scores, TextFacts
from puna.jobs.demo_report import write_report
from puna.jobs.demo_result import Clock, DemoResult, summarise
from puna.jobs.demo_text import DemoText, Parts, gather_text, split_text, tell_left_out
from puna.jobs.doctor import choose_precision
from puna.jobs.frontier import compare
from puna.jobs.load import LoadedModel, load
from puna.jobs.merging import MergeResult, merge
from puna.jobs.recipe import dump_recipe, fill, read_recipe
from puna.jobs.run_folder import RunFolder, refuse_foreign
from puna.jobs.train import TrainResult, train
from puna.jobs.train_recipe import DataSource, TrainRecipe, resumed_recipe
from puna.model.linears.adapter import LoraSettings
from puna.text.corpus import Document, documents_sha256
from puna.tokens.learning import tokenizer_at
from puna.tokens.shards import Shards, shards_at
from puna.tokens.streaming import TextStream
from puna.tokens.tokenizer import Tokenizer
from puna.training.config import Precision, TimeBudget, TrainingConfig
from puna.training.events import Observer

__all__ = ["DemoRecipe", "demo"]

_KEEPS = (0.9, 0.8, 0.6)
_JUDGED_BYTES = 1 << 18
_ADAPT_SHARE = 0.3
_RANK = 16
_PARTS = ("tokenizer", "shards", "second", "train", "adapt", "merged", "report.html")
_BYTES_PER_TOKEN_TYPE = 500
_SMALL_TEXT_BYTES = 1 << 16
_PROMPT_TOKENS = 12
_SEQ = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRecipe:
    """`seconds` is the pretraining phase; `text` a folder of the user's own, `text_sha256` what was read in it."""

    seconds: float = 90.0
    seed: int = 0
    text: Path | None = None
    lang: Literal["en", "zh"] = "en"
    text_sha256: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds: expected more than 0, got {self.seconds}", "90 is a good beginning")
        if self.seed < 0:
            raise UsageError(f"--seed: expected 0 or more, got {self.seed}", "any whole number will do")


def demo(
    recipe: DemoRecipe,
    out: Path,
    *,
    tell: Callable[[str], None] = lambda _: None,
    observers: tuple[Observer, ...] = (),
) -> DemoResult:
    """Run the main job into `out`; a finished or different demo that stands there is replaced.

    Args:   tell: is given a line where a part begins, and what was left out of the text.
    Errors: BadData, DiskFull, Interrupted (after saving), RunLocked; UsageError where `out` holds something else.
    """
    clock = Clock(tell)
    recipe = replace(recipe, text=None if recipe.text is None else recipe.text.resolve())
    _refuse_foreign(out)
    with lock_folder(out):
        with clock.step("gather"):
            text = gather_text(recipe.text)
            tell_left_out(text.corpus, tell)
            parts = split_text(text, recipe.seed)
            recipe = replace(recipe, text_sha256=documents_sha256((*text.documents, *text.second)))
        _prepare(out, recipe)
        with clock.step("tokenizer"):
            tokenizer = _tokenizer(out / "tokenizer", parts.old)
        with clock.step("shards"):
            shards = shards_at(out / "shards" / "train", parts.old, tokenizer)
            shards_at(out / "shards" / "held_out", parts.old_held_out, tokenizer)
        train_recipe = _train_recipe(recipe, out, tokenizer, shards)
        with clock.step("train"):
            trained = train(train_recipe, out / "train", resume=True, observers=observers, lang=recipe.lang)
        clock.at_least("train", trained.seconds)
        facts = _use(recipe, out, clock, text, parts, shards, train_recipe, trained, observers)
        with clock.step("report"):
            write_text(out / "report.html", write_report(facts))
        return summarise(out, clock, facts)


def _use(
    recipe: DemoRecipe,
    out: Path,
    clock: Clock,
    text: DemoText,
    parts: Parts,
    shards: Shards,
    train_recipe: TrainRecipe,
    trained: TrainResult,
    observers: tuple[Observer, ...],
) -> DemoFacts:
    """Everything after training: judge the model, adapt it, compress it, let it write."""
    with clock.step("evaluate"):
        base, judged = load(trained.model), (_texts(parts.old_held_out), _texts(parts.new_held_out))
        before = [evaluate_text(base.llama, base.tokenizer, *texts) for texts in judged]
        scores = _scores(before[0], shards, parts.old, judged[0], base.tokenizer)
    with clock.step("adapt"):
        adapted, merged = _adapt(recipe, out, parts, train_recipe, observers)
        attached = load(trained.model, adapter=out / "adapt" / "adapter")
        after = [evaluate_text(attached.llama, attached.tokenizer, *texts) for texts in judged]
    with clock.step("compress"):
        windows = calibration_windows(base.tokenizer, _texts(parts.old, 1 << 20), train_recipe.training.seq)
        compressed = compare(base.llama, base.tokenizer, windows, before[0], judged[0], _KEEPS)
    with clock.step("generate"):
        samples = _samples(recipe, base, attached, judged)
    return DemoFacts(
        lang=recipe.lang,
        seed=recipe.seed,
        text=_text_facts(text, recipe, parts.old_held_out, shards),
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
        seconds=sum(step.seconds for step in clock.steps),
        out=out,
    )


def _refuse_foreign(out: Path) -> None:
    """A folder is cleared only where its recipe is a demo's. Errors: UsageError."""
    refuse_foreign(out)
    if (out / "recipe.toml").exists():
        try:
            fill(DemoRecipe, read_recipe(out / "recipe.toml"))
        except UsageError:
            raise UsageError(f"{out} holds a run that is no demo", "choose another --out") from None


def _prepare(out: Path, recipe: DemoRecipe) -> None:
    """Keep what an unfinished demo of the same recipe has made; clear away everything else that a demo made.

    The report goes last and the recipe is overwritten after it: stopped in between, the next run clears the rest.
    """
    for folder in (out, out / "shards", out / "second"):
        sweep_stale(folder)
    text, recorded = dump_recipe(recipe), out / "recipe.toml"
    is_same = recorded.exists() and recorded.read_text(encoding="utf-8") == text
    if not is_same or (out / "report.html").exists():
        for name in _PARTS:
            remove_folder(out / name)
        write_text(recorded, text)


def _tokenizer(folder: Path, documents: Sequence[Document]) -> Tokenizer:
    """Learn the tokenizer, or read back the one that an earlier sitting learned."""
    text_bytes = sum(len(document.text.encode()) for document in documents)
    vocab_size = min(find_preset("small").config.vocab_size, max(384, text_bytes // _BYTES_PER_TOKEN_TYPE))
    return tokenizer_at(folder, (document.text for document in documents), vocab_size)


def _train_recipe(recipe: DemoRecipe, out: Path, tokenizer: Tokenizer, shards: Shards) -> TrainRecipe:
    """What to train: a small text gets a tiny model, since a larger one would learn it by heart."""
    preset = "tiny" if shards.bytes < _SMALL_TEXT_BYTES else "small"
    return TrainRecipe(
        model=replace(find_preset(preset).config, vocab_size=tokenizer.vocab_size, max_seq_len=_SEQ),
        training=TrainingConfig(
            budget=TimeBudget(seconds=recipe.seconds),
            batch=4,
            micro_batch=4,
            seq=_SEQ,
            precision=_precision(out / "train"),
            seed=recipe.seed,
            validate_every=100,
            checkpoint_every=100,
        ),
        data=(DataSource(path=(out / "shards" / "train").resolve()),),
        validation=(out / "shards" / "held_out").resolve(),
    )


def _precision(run: Path) -> Precision:
    """The one that an unfinished run began with, else the one that is faster here."""
    if RunFolder(run).recipe.exists():
        return resumed_recipe(run).training.precision
    return choose_precision("auto")


def _adapt(
    recipe: DemoRecipe,
    out: Path,
    parts: Parts,
    train_recipe: TrainRecipe,
    observers: tuple[Observer, ...],
) -> tuple[AdaptResult, MergeResult]:
    records = out / "second" / "train.jsonl", out / "second" / "held_out.jsonl"
    for path, documents in zip(records, (parts.new, parts.new_held_out), strict=True):
        lines = (json.dumps({"text": document.text}, ensure_ascii=False) + "\n" for document in documents)
        write_text(path, "".join(lines))
    budget = TimeBudget(seconds=recipe.seconds * _ADAPT_SHARE)
    adapt_recipe = AdaptRecipe(
        base=(out / "train" / "model").resolve(),
        data=(records[0].resolve(),),
        validation=records[1].resolve(),
        lora=LoraSettings(rank=_RANK, alpha=2.0 * _RANK, targets=LINEARS),
        training=replace(train_recipe.training, budget=budget, learning_rate=1e-3, weight_decay=0.0),
    )
    adapted = adapt(adapt_recipe, out / "adapt", resume=True, observers=observers, lang=recipe.lang)
    merged = merge(  # a demo of a few seconds may end before its adapter has learned anything
        out / "adapt" / "adapter", out / "merged", base_model=adapt_recipe.base, must_change=False
    )
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
        prompt = _beginning(model.tokenizer, document)
        completion = model.generate(
            prompt, max_new_tokens=tokens, temperature=temperature, top_p=0.95, seed=recipe.seed
        )
        samples.append(
            Sample(prompt=prompt, completion=completion, temperature=temperature, is_adapted=model is attached)
        )
    return samples


def _beginning(tokenizer: Tokenizer, text: str) -> str:
    """The first tokens of a text, without a character that they hold only half of."""
    stream = TextStream(tokenizer)
    return "".join(map(stream.push, tokenizer.encode(text)[:_PROMPT_TOKENS]))


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
