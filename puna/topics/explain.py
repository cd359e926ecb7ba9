"""A formula alive: its symbols and shapes, the numbers of a real pass, the notes' own example, and what is right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from puna.files import write_text
from puna.report.charts import draw_slide
from puna.report.drawing import HeadsDrawing, ModelDrawing, draw_heads, draw_model
from puna.report.svg import in_colours
from puna.topics.subject import Subject, find_subject
from puna.topics.topic import Picture, Topic, Value
from puna.topics.words import TOPICS, Words, topic_words

__all__ = ["ExplainResult", "SymbolRow", "explain", "find_topic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolRow:
    """A symbol, what it means, and its shape or unit here."""

    sign: str
    meaning: str
    shape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainResult:
    """What `puna explain --json` prints. Args: numbers: by part; right, correction: of the notes."""

    topic: str
    title: str
    subject: str
    text: str
    tokens: Sequence[str]
    formula: str
    symbols: Sequence[SymbolRow]
    numbers: Mapping[str, Mapping[str, Value]]
    right: str
    correction: str
    code: str
    test: str
    pictures: Sequence[str]
    notices: Sequence[str]


def explain(
    topic: str,
    *,
    model: str | None = None,
    text: str | None = None,
    rank: int | None = None,
    lang: str = "en",
    out: Path | None = None,
) -> ExplainResult:
    """Show a topic on a model.

    Args:   model: a run, a model's folder or file, or a preset (a large one: shapes and counts only); None: the newest run
            under runs/, else `tiny` with random weights. text: what the model reads. rank: of svd, pca, lora and memory.
            lang: en or zh. out: a folder for the pictures, as SVG.
    Errors: UsageError: an unknown topic (the nearest is offered), an empty text; as load.
    """
    words = topic_words(topic, lang)
    found = find_topic(topic)
    subject = find_subject(model, text, rank, lang)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shown = found.show(subject, words)
    drawn = [] if out is None else [_draw(out, name, each, words, lang) for name, each in shown.pictures.items()]
    return ExplainResult(
        topic=topic,
        title=words.title,
        subject=subject.name,
        text=subject.text,
        tokens=subject.pieces,
        formula="\n".join(found.formula),
        symbols=[_symbol(sign, shape, subject, words) for sign, shape in found.symbols.items()],
        numbers={part.name: part.numbers for part in shown.parts},
        right=words.right,
        correction=words.corrected,
        code=" ".join(found.code),
        test=" ".join(found.test),
        pictures=drawn,
        notices=subject.notices,
    )


def find_topic(name: str) -> Topic:
    """The topic of a name in TOPICS: its file is read now."""
    assert name in TOPICS, name
    found: Topic = import_module(f"puna.topics.{name.replace('-', '_')}").TOPIC
    return found


def _symbol(sign: str, shape: str, subject: Subject, words: Words) -> SymbolRow:
    names, sizes = shape.split(), subject.sizes
    if names and names[0] in sizes:
        shape = f"{' × '.join(names)} = {' × '.join(f'{sizes[name]:,}' for name in names)}"
    return SymbolRow(sign=sign, meaning=words.symbols[sign], shape=shape)


def _draw(out: Path, name: str, picture: Picture, words: Words, lang: str) -> str:
    title, path = words.pictures[name], out / f"{name}.svg"
    if isinstance(picture, HeadsDrawing):
        svg = in_colours(draw_heads(picture, lang, title), title)
    elif isinstance(picture, ModelDrawing):
        svg = in_colours(draw_model(picture, lang, title), title)
    else:
        svg = draw_slide(picture, title=title)
    write_text(path, svg)
    return str(path)
