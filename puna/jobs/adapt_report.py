"""What came of an adaptation: its result, the lines and the section that show it, and the card beside the adapter."""

from collections.abc import Sequence
from dataclasses import dataclass

from puna.adaptation.lint import RecordCounts
from puna.jobs.adapt_data import file_label, held_out_rows, record_rows
from puna.jobs.adapt_judge import ANSWER_TOKENS, AnsweredPrompt
from puna.jobs.adapt_recipe import AdaptRecipe
from puna.jobs.run_report import peak_row, source_rows
from puna.report.labels import label
from puna.report.numbers import human_number
from puna.report.page import Quote, Section, Table

__all__ = ["AdaptResult", "Change", "adapt_rows", "adapter_card", "change_sections"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Nats per token on (the held-out records, the old kind of text or None), and the step that they are of."""

    step: int
    before: tuple[float, float | None]
    after: tuple[float, float | None]

    @property
    def gain(self) -> float:
        """By how many nats the held-out records became likelier."""
        return self.before[0] - self.after[0]

    @property
    def forgetting(self) -> float | None:
        """By how many nats the old kind of text became less likely."""
        return None if self.before[1] is None or self.after[1] is None else self.after[1] - self.before[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptResult:
    """What `puna adapt --json` prints.

    validation_nats, validation_by_source: of the step that was kept, over all held-out records and over those of each file.
    answers: to up to three held-out prompts; none where records have no prompts, or frozen weights lie in host memory.
    relative_update: |dW| / |W| over the adapter's targets; not formed where they lie in host memory.
    held_out_records: how many of each file. adapter, model: where the result is, one of them.
    """

    trainable_parameters: int
    steps: int
    tokens: int
    tokens_per_second: float
    loss_first: float
    loss_last: float
    validation_nats: float
    validation_by_source: dict[str, float]
    change: Change
    answers: list[AnsweredPrompt]
    relative_update: float | None
    peak_bytes: int
    planned_peak_bytes: int
    records: RecordCounts
    held_out_records: dict[str, int]
    adapter: str | None
    model: str | None


def adapt_rows(result: AdaptResult, lang: str = "en") -> list[tuple[str, str]]:
    """The result as lines for people."""
    change = result.change
    rows = [
        *record_rows(lang, result.records),
        *held_out_rows(lang, result.held_out_records),
        (label(lang, "run.row.trainable"), f"{result.trainable_parameters:,}"),
        (label(lang, "run.row.steps"), f"{result.steps:,}"),
        (label(lang, "run.row.kept"), f"{change.step:,}"),
        (label(lang, "run.row.speed"), human_number(result.tokens_per_second)),
        (label(lang, "run.row.loss"), f"{result.loss_first:.3f} → {result.loss_last:.3f}"),
        (label(lang, "run.row.held_out"), f"{change.before[0]:.3f} → {change.after[0]:.3f}"),
    ]
    rows += source_rows(lang, {file_label(lang, name): nats for name, nats in result.validation_by_source.items()})
    if change.before[1] is not None:
        rows.append((label(lang, "run.row.old"), f"{change.before[1]:.3f} → {change.after[1]:.3f}"))
    if result.relative_update is not None:
        rows.append((label(lang, "run.row.update"), f"{result.relative_update:.4f}"))
    rows.append(peak_row(lang, result.peak_bytes, result.planned_peak_bytes))
    places = (("adapter", result.adapter), ("model", result.model))
    return [*rows, *((label(lang, f"run.row.{name}"), place) for name, place in places if place is not None)]


def change_sections(lang: str, result: AdaptResult) -> tuple[Section, ...]:
    """What was gained on the new kind of text and lost on the old one; and answers before and after."""
    return _change(lang, result.change), *_answers(lang, result.answers)


def _change(lang: str, change: Change) -> Section:
    rows = [
        (label(lang, f"run.change.{name}"), f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
        for name, before, after in zip(("new", "old"), change.before, change.after, strict=True)
        if before is not None and after is not None
    ]
    columns = tuple(label(lang, f"run.change.{name}") for name in ("text", "before", "after", "difference"))
    table = Table(columns=columns, rows=rows, caption=label(lang, "run.change.caption"))
    return Section(title=label(lang, "run.change.title"), items=(table,))


def _answers(lang: str, answers: Sequence[AnsweredPrompt]) -> tuple[Section, ...]:
    if not answers:
        return ()
    quotes = [
        Quote(prompt=each.prompt, continuation=text, caption=label(lang, f"run.answers.{when}", place=each.place))
        for each in answers
        for when, text in (("before", each.before), ("after", each.after))
    ]
    words = label(lang, "run.answers.words", tokens=ANSWER_TOKENS)
    return (Section(title=label(lang, "run.answers.title"), words=(words,), items=quotes),)


def adapter_card(recipe: AdaptRecipe, result: AdaptResult, data_sha256: str, *, beside_corrected: bool) -> str:
    """Markdown for the adapter's folder: base, data, method, gain and forgetting. The same run gives the same card."""
    assert recipe.lora is not None
    lora, training, change = recipe.lora, recipe.training, result.change
    kinds = {
        "rank-stabilised": lora.rank_stabilized,
        "DoRA": lora.magnitudes,
        f"from {lora.start}": lora.start != "zeros",
    }
    kind = ", ".join(name for name, is_so in kinds.items() if is_so) or "plain LoRA"
    files, targets = ", ".join(f"`{path.name}`" for path in recipe.data), ", ".join(lora.targets)
    size = f"{change.step:,} steps of {training.batch} rows of {training.seq} tokens"
    gain = f"{change.before[0]:.4f} -> {change.after[0]:.4f} nats per token, a gain of {change.gain:.4f}"
    lines = [
        ("base", f"`{recipe.base.name}`, Linears {recipe.base_type or 'as stored'}"),
        ("data", f"{files}: {result.records.used:,} records, SHA-256 of the rows `{data_sha256}`"),
        ("method", f"{kind}, rank {lora.rank}, alpha {lora.alpha:g} on {targets}"),
        ("training", f"{size}, learning rate {training.learning_rate:g}"),
        ("held-out records", gain),
    ]
    if change.forgetting is not None:
        old = f"{change.before[1]:.4f} -> {change.after[1]:.4f} nats per token, {change.forgetting:.4f} forgotten"
        lines.append(("old kind of text", old))
    body = "".join(f"- {name}: {words}\n" for name, words in lines)
    readers = "Puna alone reads this folder, beside its base" if beside_corrected else "PEFT and Puna read this folder"
    return f"# Adapter\n\n{body}\nThe whole recipe is recipe.toml of its run. {readers}.\n"
