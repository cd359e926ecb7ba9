"""A report: sections of words, figures and tables, rendered as one self-contained HTML file.

No script, no link to anything outside, light and dark by the reader's own setting, fit for a phone and for paper. The
bytes depend on the data alone: there is no date, and ids are numbered.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from puna.report.charts import Chart, draw_chart, legend
from puna.report.drawing import HeadsDrawing, ModelDrawing, draw_heads, draw_model
from puna.report.labels import label
from puna.report.svg import printable

__all__ = ["Commands", "Fact", "Facts", "Figure", "Formula", "Item", "Quote", "Section", "Table", "render_page"]

_WIDE, _NARROW = 720, 360  # CSS pixels; page.css shows one of the two
_UNIT = re.compile(r"(?<=\d) (?=(?:%|[kMGTP]?i?B|µs|ms|s|min|h|d)(?!\w))")
_LANG_TAGS = {"zh": "zh-Hant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart or a drawing with its caption."""

    content: Chart | ModelDrawing | HeadsDrawing
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text; `align` has an `l` or an `r` for each column (default: the first left, the others right)."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    align: str = ""
    strong_rows: Sequence[int] = ()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.columns
        assert len(self.align) in (0, len(self.columns)), self.align

    def side(self, column: int) -> str:
        """`l` or `r` for a column."""
        return self.align[column] if self.align else "l" if column == 0 else "r"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One large number, what it is, and what it means."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Large numbers side by side."""

    facts: Sequence[Fact]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What was given to the model and what it wrote on."""

    prompt: str
    continuation: str
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Formula:
    """Mathematics in plain HTML: `x_{i}` and `b^{2}` are set low and high, single letters in italics.

    Args:    symbols: (symbol, meaning, value here) rows; heads: the names of these three columns.
    """

    lines: Sequence[str]
    symbols: Sequence[tuple[str, str, str]] = ()
    heads: tuple[str, str, str] = ("", "", "")
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """(command, what it does) pairs to copy."""

    commands: Sequence[tuple[str, str]]


Item = Figure | Table | Facts | Quote | Formula | Commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, its paragraphs (words in `backticks` are set as code), and what they speak about."""

    title: str
    words: Sequence[str] = ()
    items: Sequence[Item] = ()


def render_page(title: str, subtitle: str, sections: Sequence[Section], lang: str = "en") -> str:
    """Render a report as one HTML document.

    Errors:  UsageError for a language without labels.
    """
    folder = resources.files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"kind": _kind, "prose": _prose, "math": _math}
    template = environment.from_string((folder / "page.html").read_text("utf-8"))
    page = template.render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        lang=_LANG_TAGS.get(lang, lang),
        contents=label(lang, "page.contents"),
        made_with=label(lang, "page.made_with"),
        style=Markup((folder / "page.css").read_text("utf-8")),
        pictures=lambda figure, prefix: _pictures(figure, prefix, lang),
        legend=lambda figure: () if _is_drawing(figure) else legend(figure.content),
    )
    return printable(page)


def _pictures(figure: Figure, prefix: str, lang: str) -> tuple[tuple[str, Markup], ...]:
    """(class of the page, SVG): one drawing for every screen, or a chart's wide and narrow forms."""
    content = figure.content
    if isinstance(content, ModelDrawing):
        return (("drawing", draw_model(content, lang, figure.caption)),)
    if isinstance(content, HeadsDrawing):
        return (("drawing", draw_heads(content, lang, figure.caption)),)
    return tuple(
        (name, draw_chart(content, width=width, prefix=f"{prefix}-{name}", title=figure.caption))
        for name, width in (("wide", _WIDE), ("narrow", _NARROW))
    )


def _is_drawing(figure: Figure) -> bool:
    return isinstance(figure.content, (ModelDrawing, HeadsDrawing))


def _kind(item: object) -> str:
    return type(item).__name__


def _prose(text: str) -> Markup:
    """Set `backticks` as code and keep a number on one line with its unit."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(_UNIT.sub("\u00a0", marked))


def _math(text: str) -> Markup:
    """Set `_{...}` low, `^{...}` high and lone letters in italics; braces may nest."""
    marked = re.sub(r"([α-ω]|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))", r"<i>\1</i>", str(escape(text)))
    count = 1
    while count:
        marked, low = re.subn(r"_\{([^{}]*)\}", r"<sub>\1</sub>", marked)
        marked, high = re.subn(r"\^\{([^{}]*)\}", r"<sup>\1</sup>", marked)
        count = low + high
    return Markup(marked)
