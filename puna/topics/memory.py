"""The memory of tuning with LoRA: what stands on the card at the peak, term by term, for each way to store the base."""

from collections.abc import Mapping

from puna.arch.config import ModelConfig
from puna.jobs.plan import PlanResult, plan
from puna.planning.settings import Base
from puna.report.axes import Axis, Reference
from puna.report.bars import BarChart, Bars
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value
from puna.topics.words import Words

__all__ = ["TOPIC"]

_BASES: dict[str, Base] = {"bf16": "bfloat16", "int8": "int8", "nf4": "nf4"}
_NOTES = "llama-3-8b"
_RANK = 16  # the notes'
_CARDS = (14, 16, 18)  # GB, the notes'


def _show(subject: Subject, words: Words) -> Shown:
    names = words.numbers
    wide, narrow = (_plans(_NOTES, _RANK, checkpointing=is_narrow) for is_narrow in (False, True))
    example = _sizes(narrow, names) | {
        "unchecked_bytes": [each.bytes.total for each in wide.values()],
        "streamed_layers": _fitting(names),
    }
    parts = {"example": example}
    if not subject.config.altered_parts:  # only a Llama is adapted
        plans = _plans(subject.config, subject.sizes["r"], checkpointing=True)
        parts = {"model": _sizes(plans, names)} | parts
    ends = {"": wide, f", {names['checkpointing']}": narrow}
    totals = {f"{name}{end}": each.bytes.total for end, plans in ends.items() for name, each in plans.items()}
    chart = BarChart(
        axis=Axis(label=names["peak"], form="bytes"),
        categories=list(totals),
        series=[Bars(name="", values=list(totals.values()))],
        references=[Reference(label=f"{card} GB", value=1e9 * card) for card in _CARDS],
    )
    return Shown.of(**parts, pictures={"memory": chart})


def _sizes(plans: Mapping[str, PlanResult], names: Mapping[str, str]) -> dict[str, Value]:
    first = plans["bf16"]
    return {
        "row_tokens": first.settings.seq,
        "lora_parameters": first.lora.parameters,
        "peak_bytes": _terms(plans, names),
    }


def _plans(model: str | ModelConfig, rank: int, *, checkpointing: bool) -> dict[str, PlanResult]:
    """Of one row of 2,048 tokens, or of the model's context where that is shorter."""
    return {name: _plan(model, rank, base, None, checkpointing=checkpointing) for name, base in _BASES.items()}


def _plan(model: str | ModelConfig, rank: int, base: Base, fit: str | None, *, checkpointing: bool) -> PlanResult:
    found = plan(model, train="lora", rank=rank, base=base, fit=fit, checkpointing=checkpointing)
    assert isinstance(found, PlanResult)
    return found


def _terms(plans: Mapping[str, PlanResult], names: Mapping[str, str]) -> Grid:
    """Each term of the peak; they add up."""
    terms = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "runtime", "total")
    return Grid.of(list(plans), {names[term]: [getattr(each.bytes, term) for each in plans.values()] for term in terms})


def _fitting(names: Mapping[str, str]) -> Grid:
    """How many layers of the base have to wait in the host's memory for the rest to fit a card."""
    layers = dict[str, list[float]]()
    for card in _CARDS:
        found = [_plan(_NOTES, _RANK, base, f"{card}GB", checkpointing=True) for base in _BASES.values()]
        layers[f"{names['card']} {card} GB"] = [each.settings.streamed_layers for each in found]
    return Grid.of(list(_BASES), layers)


TOPIC = Topic(
    name="memory",
    formula=(
        "M = base + adapter (w, g, m, v: 16 bytes a number) + n keep + max(loss, block) + runtime",
        "keep = 2 d L bytes a token with checkpointing, else all that every layer kept",
        "loss = min(n, 1024) V 10 bytes,  block = n (a + 4 f) + one weight of the base made wide",
    ),
    symbols={"base": "bytes", "n": "tokens", "d": "d", "L": "L", "V": "V", "f": "f", "a": "bytes"},
    show=_show,
    code=("puna/planning/memory.py", "peak_memory"),
    test=("tests/planning/test_memory.py", "test_peaks_equal_the_reference_table"),
)
