"""Inline SVG that is fit for a page: colours by name, ids of its own, text that stays text.

A figure is drawn once, in placeholder colours; here they become the page's CSS variables, so that light and dark share
one drawing. matplotlib's file header, metadata and page-wide style are dropped.
"""

import re
import unicodedata
from importlib import resources
from xml.etree import ElementTree

from markupsafe import Markup, escape

__all__ = [
    "SERIES_SHADES",
    "element",
    "embed_svg",
    "in_colours",
    "placeholder",
    "printable",
    "series_shade",
    "text_width",
    "variable",
]

SERIES_SHADES = 8
_SHADES = ("ink", "muted", "grid", "paper", *(f"series-{index}" for index in range(SERIES_SHADES)))
_PLACEHOLDER = re.compile(r"#fa50([0-9a-f]{2})")
_FONT_FAMILY = re.compile(r"font-family:[^;]*;?")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def series_shade(index: int) -> str:
    """The name of a series' colour; after eight they repeat."""
    return f"series-{index % SERIES_SHADES}"


def placeholder(shade: str) -> str:
    """The colour to draw with where the page's colour `shade` is meant."""
    return f"#fa50{_SHADES.index(shade):02x}"


def variable(shade: str) -> str:
    """The CSS colour `shade`, for markup written by hand."""
    assert shade in _SHADES, shade
    return f"var(--{shade})"


def element(name: str, *children: str, **attributes: str | float) -> Markup:
    """One SVG or HTML element; plain strings are escaped, an attribute's `_` is written `-`."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(f"{value:g}" if isinstance(value, float) else value)}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{pairs}>") + Markup("").join(children) + Markup(f"</{name}>")


def embed_svg(svg: str, prefix: str, title: str) -> Markup:
    """Turn a stand-alone SVG drawn in placeholder colours into markup for the middle of a page.

    Args:    prefix: put before every id, so that figures never share one; title: what a screen reader says.
    """
    root = ElementTree.fromstring(printable(svg))
    for node in list(root.iter()):
        node.tag = node.tag.rpartition("}")[2]
        node.attrib = {key.rpartition("}")[2]: value for key, value in node.attrib.items()}
        for child in list(node):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                node.remove(child)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", ElementTree.tostring(root, encoding="unicode")))
    for node in root.iter():
        node.attrib = {
            key: _own(key, value, prefix) for key, value in node.attrib.items() if key != "id" or value in used
        }
        node.text, node.tail = (node.text if node.tag == "text" else None), None
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": printable(title)}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def in_colours(svg: str, title: str) -> str:
    """A page's SVG as a file that stands alone: the light colours in place of the page's names, a font of its own."""
    css = (resources.files(__package__) / "page.css").read_text("utf-8").split("@media")[0]
    colours = dict(re.findall(r"--([a-z0-9-]+):\s*(#[0-9a-f]{6})", css))
    coloured = re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: colours[match[1]], svg)
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif"'
    name = f"<title>{escape(printable(title))}</title>"
    opening, rest = coloured.split(">", 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}{opening.removeprefix("<svg")}>{name}{rest}\n'


def printable(text: str) -> str:
    """The text with every character that HTML and XML cannot carry shown instead: controls as ␀ to ␟, others as �."""
    return _UNPRINTABLE.sub(lambda match: _picture(ord(match[0])), text)


def text_width(text: str, size: float) -> float:
    """About how wide a line is at a font size, in the same unit; wide East Asian characters count a whole em."""
    return size * sum(1.0 if unicodedata.east_asian_width(character) in "WF" else 0.56 for character in text)


def _own(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href":
        return f"#{prefix}-{value.removeprefix('#')}"
    if key == "style":
        value = _FONT_FAMILY.sub("", value)
    value = _PLACEHOLDER.sub(lambda match: f"var(--{_SHADES[int(match[1], 16)]})", value)
    return re.sub(r"url\(#", f"url(#{prefix}-", " ".join(value.split()))


def _picture(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�"
