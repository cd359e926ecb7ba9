"""The parts of a report that several verbs show: the model, the loss, the plan beside the measurement."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.arch.config import ModelConfig
from puna.planning import counting
from puna.planning.memory import Memory
from puna.report.axes import Axis, Reference
from puna.report.bars import BarChart, Bars
from puna.report.curves import LineChart, Series
from puna.report.drawing import HeadsDrawing, ModelDrawing
from puna.report.labels import label, phrase
from puna.report.numbers import human_bytes, human_count, human_number, human_percent
from puna.report.page import Figure, Formula, Section, Table
from puna.training.events import SampleEvent

__all__ = [
    "History",
    "cache_section",
    "loss_figure",
    "memory_section",
    "model_drawing",
    "model_section",
    "read_history",
    "rope_section",
]

_AVERAGE_OVER = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run's metrics as columns: training steps and validations, by tokens seen; and what the model wrote."""

    tokens: tuple[int, ...]
    nats: tuple[float, ...]
    validation_steps: tuple[int, ...]
    validation_tokens: tuple[int, ...]
    validation_nats: tuple[float, ...]
    validation_by_source: tuple[dict[str, float], ...]
    samples: tuple[SampleEvent, ...]

    def by_source_at(self, step: int) -> dict[str, float]:
        """Held-out nats of each source after a step; none where it was not judged."""
        return dict(zip(self.validation_steps, self.validation_by_source, strict=True)).get(step, {})


def read_history(metrics: Path) -> History:
    """Read a run's metrics.jsonl."""
    events = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    validations = [event for event in events if event["event"] == "validation"]
    return History(
        tokens=tuple(event["tokens"] for event in steps),
        nats=tuple(event["nats"] for event in steps),
        validation_steps=tuple(event["step"] for event in validations),
        validation_tokens=tuple(event["tokens"] for event in validations),
        validation_nats=tuple(event["nats"] for event in validations),
        validation_by_source=tuple(event.get("by_source", {}) for event in validations),
        samples=tuple(
            SampleEvent(step=event["step"], prompt=event["prompt"], text=event["text"])
            for event in events
            if event["event"] == "sample"
        ),
    )


def model_section(lang: str, config: ModelConfig, steps: int, batch_tokens: int) -> Section:
    """What was trained: the drawing with its sizes, and where the parameters are."""
    total, changes = f"{counting.parameter_count(config):,}", config.exchanged
    sizes = {"vocabulary": f"{config.vocab_size:,}", "steps": f"{steps:,}", "batch_tokens": f"{batch_tokens:,}"}
    words = label(lang, "trained.words", parameters=total, dim=config.dim, layers=config.n_layers)
    drawn: tuple[Figure, ...] = (Figure(content=model_drawing(config), caption=label(lang, "trained.drawing_caption")),)
    if changes:  # the drawing is a Llama's
        named = label(lang, "page.comma").join(phrase(lang, "trained.exchanged", change) for change in changes)
        words = label(lang, "trained.words_variant", parameters=total, changes=named)
        drawn = ()
    return Section(
        title=label(lang, "trained.title"),
        words=(words, label(lang, "trained.words_head", **sizes)),
        items=(*drawn, _parameter_table(lang, config)),
    )


def model_drawing(config: ModelConfig) -> ModelDrawing:
    """The sizes that the drawing of a model needs."""
    attention, feed_forward = (counting.group_parameters(config, group) for group in ("attention", "mlp"))
    return ModelDrawing(
        vocab_size=config.vocab_size,
        dim=config.dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        ffn_dim=config.ffn_dim,
        tied_embeddings=config.tied_embeddings,
        embedding_parameters=counting.embedding_parameters(config),
        attention_parameters=attention,
        feed_forward_parameters=feed_forward,
        head_parameters=counting.head_parameters(config),
    )


def _parameter_table(lang: str, config: ModelConfig) -> Table:
    attention, feed_forward = (counting.group_parameters(config, group) for group in ("attention", "mlp"))
    total, layers = counting.parameter_count(config), config.n_layers
    parts = (
        (label(lang, "trained.part.embedding"), counting.embedding_parameters(config)),
        (label(lang, "trained.part.attention", layers=layers), layers * attention),
        (label(lang, "trained.part.feed_forward", layers=layers), layers * feed_forward),
        (label(lang, "trained.part.norms"), counting.norm_parameters(config)),
        (label(lang, "trained.part.head"), counting.head_parameters(config)),
        (label(lang, "trained.part.total"), total),
    )
    return Table(
        columns=tuple(label(lang, f"trained.column.{name}") for name in ("part", "parameters", "share")),
        rows=tuple((name, f"{count:,}", human_percent(count / total)) for name, count in parts),
        caption=label(lang, "trained.table_caption"),
        strong_rows=(len(parts) - 1,),
    )


def loss_figure(lang: str, history: History, references: Sequence[tuple[str, float]] = ()) -> Figure:
    """The loss against tokens seen; references are (label key, nats)."""
    average_over = min(_AVERAGE_OVER, max(1, len(history.nats) // 10))
    training = Series(name=label(lang, "loss.training"), x=history.tokens, y=history.nats, average_over=average_over)
    series = [training]
    if history.validation_nats:
        held_out = label(lang, "loss.validation")
        series.append(Series(name=held_out, x=history.validation_tokens, y=history.validation_nats))
    chart = LineChart(
        x=Axis(label=label(lang, "loss.x_axis"), form="count"),
        y=Axis(label=label(lang, "loss.y_axis")),
        series=series,
        references=tuple(Reference(label=label(lang, key), value=nats) for key, nats in references),
    )
    return Figure(content=chart, caption=label(lang, "loss.caption", average_over=average_over))


def memory_section(lang: str, plan: Memory, measured_bytes: int) -> Section:
    """The plan's parts beside the measured peak."""
    parts = {
        "weights": plan.weights,
        "adapters": plan.adapters,
        "gradients": plan.gradients,
        "optimizer": plan.optimizer,
        "activations": plan.activations,
        "logits": plan.logits,
        "runtime": plan.runtime,
    }
    present = {name: count for name, count in parts.items() if count}
    bars = [Bars(name=label(lang, f"memory.{name}"), values=(count, 0)) for name, count in present.items()]
    chart = BarChart(
        axis=Axis(label=label(lang, "memory.axis"), form="bytes"),
        categories=(label(lang, "memory.planned"), label(lang, "memory.measured")),
        series=(*bars, Bars(name=label(lang, "memory.peak"), values=(0, measured_bytes))),
        is_stacked=True,
    )
    rows = [(label(lang, f"memory.{name}"), human_bytes(count)) for name, count in present.items()]
    rows += [
        (label(lang, "memory.planned"), human_bytes(plan.total)),
        (label(lang, "memory.peak"), human_bytes(measured_bytes)),
    ]
    words = label(
        lang,
        "memory.words",
        planned=human_bytes(plan.total),
        measured=human_bytes(measured_bytes),
        ratio=human_percent(measured_bytes / plan.total),
    )
    columns = (label(lang, "memory.column.part"), label(lang, "memory.column.bytes"))
    return Section(
        title=label(lang, "memory.title"),
        words=(words,),
        items=(
            Figure(content=chart, caption=label(lang, "memory.caption")),
            Table(columns=columns, rows=rows, strong_rows=(len(rows) - 2, len(rows) - 1)),
        ),
    )


def cache_section(lang: str, config: ModelConfig, cache_bytes: int) -> Section:
    """Grouped against separate heads: who reads whom, and the bytes of the cache at the full context.

    Args: cache_bytes: what a float32 cache for the full context really allocated.
    """
    heads, groups, context = config.n_heads, config.n_kv_heads, config.max_seq_len
    per_token = cache_bytes // context
    chart = BarChart(
        axis=Axis(label=label(lang, "cache.axis", context=context), form="bytes"),
        categories=(
            label(lang, "cache.gqa", groups=groups),
            label(lang, "cache.mha", heads=heads),
            label(lang, "cache.mqa"),
        ),
        series=(Bars(name="", values=(cache_bytes, cache_bytes * heads // groups, cache_bytes // groups)),),
    )
    words = label(
        lang,
        "cache.words",
        per_group=config.heads_per_group,
        heads=heads,
        groups=groups,
        bytes=human_bytes(per_token),
        full_bytes=human_bytes(per_token * config.heads_per_group),
    )
    return Section(
        title=label(lang, "cache.title"),
        words=(words,),
        items=(
            Figure(
                content=HeadsDrawing(n_heads=heads, n_kv_heads=groups), caption=label(lang, "cache.drawing_caption")
            ),
            Figure(content=chart, caption=label(lang, "cache.caption")),
        ),
    )


def rope_section(lang: str, config: ModelConfig, frequencies: Sequence[float]) -> Section:
    """One formula with this model's own numbers. Args: frequencies: radians per token, one per pair."""
    width, context = config.head_dim, config.max_seq_len
    turns = [2 * math.pi / frequency for frequency in frequencies]
    formula = Formula(
        lines=(
            "θ_{j} = b^{−2j/E}",
            "x′_{j} = x_{j} cos mθ_{j} − x_{j+E/2} sin mθ_{j}",
            "x′_{j+E/2} = x_{j+E/2} cos mθ_{j} + x_{j} sin mθ_{j}",
        ),
        symbols=(
            ("b", label(lang, "rope.base"), f"{config.rope_theta:,.0f}"),
            ("E", label(lang, "rope.head_dim"), str(width)),
            ("j", label(lang, "rope.pair"), f"0 … {width // 2 - 1}"),
            ("m", label(lang, "rope.position"), f"0 … {context - 1}"),
            ("mθ_{j}", label(lang, "rope.angle"), f"0 … {human_number((context - 1) * frequencies[0])} rad"),
            ("x_{j}, x_{j+E/2}", label(lang, "rope.halves"), ""),
        ),
        heads=(label(lang, "rope.symbol"), label(lang, "rope.meaning"), label(lang, "rope.value")),
    )
    chart = LineChart(
        x=Axis(label=label(lang, "rope.x_axis")),
        y=Axis(label=label(lang, "rope.y_axis"), form="count", is_log=True),
        series=(Series(name=label(lang, "rope.series"), x=list(range(len(turns))), y=turns),),
        references=(Reference(label=label(lang, "rope.context", context=context), value=context),),
    )
    numbers = label(
        lang,
        "rope.words_numbers",
        fastest=human_number(turns[0]),
        slowest=human_count(turns[-1]),
        context=context,
    )
    return Section(
        title=label(lang, "rope.title"),
        words=(label(lang, "rope.words", pairs=width // 2), numbers),
        items=(formula, Figure(content=chart, caption=label(lang, "rope.caption"))),
    )
