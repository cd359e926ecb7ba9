"""Drawings made by hand: the model with its sizes, and which query heads share a key-value head.

Both are plain SVG elements on a canvas 432 units wide, small enough for a phone; colours are the page's own.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from puna.report.labels import label
from puna.report.numbers import human_count
from puna.report.svg import element, series_shade, variable

__all__ = ["HeadsDrawing", "ModelDrawing", "draw_heads", "draw_model"]

WIDTH = 432
_STREAM = 32  # x of the residual stream
_LEFT, _RIGHT = 72, 314  # the column of boxes
_ATTENTION, _FEED_FORWARD, _TABLE = "series-0", "series-1", "series-2"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDrawing:
    """The sizes to draw: ModelConfig's, and parameters counted per part (attention and feed_forward: of one layer)."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    tied_embeddings: bool
    embedding_parameters: int
    attention_parameters: int
    feed_forward_parameters: int
    head_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsDrawing:
    """Query heads over the key-value heads they read, once as in this model and once with one each."""

    n_heads: int
    n_kv_heads: int


def draw_model(sizes: ModelDrawing, lang: str, title: str) -> Markup:
    """Draw the way of one token from its id down to the probabilities of the next one."""
    frame_top = 92
    attention, frame_middle = _attention(sizes, lang, frame_top + 34)
    feed_forward, frame_end = _feed_forward(sizes, lang, frame_middle + 30)
    frame_bottom = frame_end + 16
    norm_y = frame_bottom + 18
    head_y = norm_y + 40
    end = head_y + 62
    head_shape = label(lang, "drawing.tied") if sizes.tied_embeddings else f"{sizes.dim:,} → {sizes.vocab_size:,}"
    parts = [
        _box(1, frame_top, WIDTH - 2, frame_bottom - frame_top, None, radius=12),
        _text(
            WIDTH - 16, frame_top + 22, label(lang, "drawing.layers", layers=sizes.n_layers), anchor="end", bold=True
        ),
        _arrow(_STREAM, 28, _STREAM, end - 18, is_stream=True),
        _text(_STREAM + 14, 20, label(lang, "drawing.ids"), shade="muted"),
        _named_box(8, 36, label(lang, "drawing.embedding"), f"{sizes.vocab_size:,} × {sizes.dim:,}", _TABLE),
        _text(WIDTH - 16, 20, label(lang, "drawing.parameters"), shade="muted", anchor="end"),
        _text(WIDTH - 16, 54.5, human_count(sizes.embedding_parameters), anchor="end"),
        *attention,
        *feed_forward,
        _named_box(8, norm_y, "RMSNorm", f"{sizes.dim:,}", "muted"),
        _named_box(8, head_y, label(lang, "drawing.head"), head_shape, _TABLE),
        _text(
            WIDTH - 16, head_y + 18.5, human_count(sizes.head_parameters) if sizes.head_parameters else "", anchor="end"
        ),
        _text(_STREAM + 14, end - 8, label(lang, "drawing.next", vocabulary=f"{sizes.vocab_size:,}"), shade="muted"),
    ]
    return _canvas(end + 2, title, parts)


def draw_heads(heads: HeadsDrawing, lang: str, title: str) -> Markup:
    """Draw query heads as circles, key-value heads as squares, and a line wherever one reads the other."""
    shared = label(lang, "drawing.shared", heads=heads.n_heads, groups=heads.n_kv_heads)
    separate = label(lang, "drawing.separate", heads=heads.n_heads)
    panels = {heads.n_kv_heads: shared, heads.n_heads: separate}  # one panel where nothing is shared
    parts: list[Markup] = []
    for index, (n_kv_heads, name) in enumerate(panels.items()):
        parts += _heads_panel(heads.n_heads, n_kv_heads, 18 + 138 * index, name)
    end = 18 + 138 * len(panels)
    parts.append(_text(2, end - 6, label(lang, "drawing.heads_key"), shade="muted"))
    return _canvas(end, title, parts)


def _attention(sizes: ModelDrawing, lang: str, top: int) -> tuple[list[Markup], int]:
    """The attention half of a layer; returns its elements and the y where it ends."""
    inner = _RIGHT - _LEFT - 12
    narrow = max(64, round(inner * sizes.n_kv_heads / (sizes.n_heads + 2 * sizes.n_kv_heads)))
    wide = inner - 2 * narrow
    lefts = (_LEFT, _LEFT + wide + 6, _LEFT + wide + narrow + 12)
    query, key = (f"{heads:,} × {sizes.head_dim:,}" for heads in (sizes.n_heads, sizes.n_kv_heads))
    y_qkv, y_rope, y_scores, y_out = top + 42, top + 94, top + 130, top + 178
    parts = [
        *_branch(top, sizes.dim),
        *(_arrow(left + width / 2, top + 28, left + width / 2, y_qkv) for left, width in _pairs(lefts, wide, narrow)),
        _box(lefts[0], y_qkv, wide, 40, _ATTENTION, lines=("q", query)),
        _box(lefts[1], y_qkv, narrow, 40, _ATTENTION, lines=("k", key)),
        _box(lefts[2], y_qkv, narrow, 40, _ATTENTION, lines=("v", key)),
        _box(lefts[0], y_rope, wide + narrow + 6, 24, "muted", lines=(label(lang, "drawing.rope"),)),
        *(_arrow(left + width / 2, y_qkv + 40, left + width / 2, y_rope)
          for left, width in _pairs(lefts[:2], wide, narrow)),
        *(_arrow(left + width / 2, y_rope + 24, left + width / 2, y_scores)
          for left, width in _pairs(lefts[:2], wide, narrow)),
        _arrow(lefts[2] + narrow / 2, y_qkv + 40, lefts[2] + narrow / 2, y_scores),
        _box(_LEFT, y_scores, _RIGHT - _LEFT, 32, _ATTENTION, lines=(f"softmax(q kᵀ / √{sizes.head_dim}) v",)),
        _arrow((_LEFT + _RIGHT) / 2, y_scores + 32, (_LEFT + _RIGHT) / 2, y_out),
        _inner_box(y_out, "o", f"{sizes.n_heads * sizes.head_dim:,} → {sizes.dim:,}", _ATTENTION),
        *_return(y_out + 14),
        _count((top + y_out) // 2 + 14, label(lang, "drawing.attention"), sizes.attention_parameters),
    ]  # fmt: skip
    return parts, y_out + 28


def _feed_forward(sizes: ModelDrawing, lang: str, top: int) -> tuple[list[Markup], int]:
    """The feed-forward half of a layer; returns its elements and the y where it ends."""
    half = (_RIGHT - _LEFT - 6) // 2
    y_in, y_gate, y_out = top + 42, top + 98, top + 142
    grows, shrinks = f"{sizes.dim:,} → {sizes.ffn_dim:,}", f"{sizes.ffn_dim:,} → {sizes.dim:,}"
    parts = [
        *_branch(top, sizes.dim),
        *(_arrow(x, top + 28, x, y_in) for x in (_LEFT + half / 2, _RIGHT - half / 2)),
        _box(_LEFT, y_in, half, 40, _FEED_FORWARD, lines=("gate", grows)),
        _box(_RIGHT - half, y_in, half, 40, _FEED_FORWARD, lines=("up", grows)),
        *(_arrow(x, y_in + 40, x, y_gate) for x in (_LEFT + half / 2, _RIGHT - half / 2)),
        _box(_LEFT, y_gate, _RIGHT - _LEFT, 28, _FEED_FORWARD, lines=("SiLU(gate) · up",)),
        _arrow((_LEFT + _RIGHT) / 2, y_gate + 28, (_LEFT + _RIGHT) / 2, y_out),
        _inner_box(y_out, "down", shrinks, _FEED_FORWARD),
        *_return(y_out + 14),
        _count((top + y_out) // 2 + 14, label(lang, "drawing.feed_forward"), sizes.feed_forward_parameters),
    ]
    return parts, y_out + 28


def _pairs(lefts: Iterable[float], wide: float, narrow: float) -> Iterable[tuple[float, float]]:
    return ((left, wide if index == 0 else narrow) for index, left in enumerate(lefts))


def _branch(y: int, dim: int) -> list[Markup]:
    """Read the stream: an arrow to the right into a norm."""
    return [_arrow(_STREAM, y + 14, _LEFT, y + 14), _inner_box(y, "RMSNorm", f"{dim:,}", "muted")]


def _return(y: float) -> list[Markup]:
    """Add to the stream: an arrow to the left into a plus."""
    plus = element("circle", cx=_STREAM, cy=y, r=9, fill=variable("paper"), stroke=variable("ink"), stroke_width=1.4)
    arms = element("path", d=f"M{_STREAM - 4} {y}h8M{_STREAM} {y - 4}v8", stroke=variable("ink"), stroke_width=1.4)
    return [_arrow(_LEFT, y, _STREAM + 9, y), plus, arms]


def _named_box(x: float, y: float, name: str, shape: str, shade: str) -> Markup:
    """A box as wide as the layer, standing on the stream: its name, and its shape at the right."""
    return _box(x, y, _RIGHT - x, 28, shade) + _labels(x + 40, y + 18.5, name, shape)


def _inner_box(y: float, name: str, shape: str, shade: str) -> Markup:
    return _box(_LEFT, y, _RIGHT - _LEFT, 28, shade) + _labels(_LEFT + 12, y + 18.5, name, shape)


def _labels(x: float, y: float, name: str, shape: str) -> Markup:
    return _text(x, y, name, bold=True) + _text(_RIGHT - 12, y, shape, shade="muted", anchor="end")


def _count(y: float, name: str, parameters: int) -> Markup:
    """What a part of the layer is called and how many parameters it holds, in the right column."""
    return _text(WIDTH - 16, y - 9, name, anchor="end", bold=True) + _text(
        WIDTH - 16, y + 9, human_count(parameters), anchor="end"
    )


def _heads_panel(n_heads: int, n_kv_heads: int, top: int, title: str) -> Iterable[Markup]:
    pitch = WIDTH / n_heads
    radius = min(9.0, 0.4 * pitch)
    per_group = n_heads // n_kv_heads
    y_heads, y_groups = top + 32, top + 92
    yield _text(2, top, title, bold=True)
    for group in range(n_kv_heads):
        colour = variable(series_shade(group % 4))
        middle = (group + 0.5) * per_group * pitch
        for head in range(group * per_group, (group + 1) * per_group):
            x = (head + 0.5) * pitch
            yield element("path", d=f"M{x:g} {y_heads}L{middle:g} {y_groups}", stroke=colour, stroke_width=1.2)
            yield element("circle", cx=x, cy=y_heads, r=radius, fill=colour)
        yield element("rect", x=middle - radius, y=y_groups - radius, width=2 * radius, height=2 * radius,
                      rx=0.25 * radius, fill=variable("paper"), stroke=colour, stroke_width=2)  # fmt: skip


def _canvas(height: float, title: str, parts: Iterable[Markup]) -> Markup:
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=title)


def _box(
    x: float, y: float, width: float, height: float, shade: str | None, *, lines: tuple[str, ...] = (), radius: int = 6
) -> Markup:
    """A rounded box tinted with a colour (None: only its edge), with up to two centred lines."""
    fill = variable("paper") if shade is None else f"color-mix(in srgb, {variable(shade)} 16%, {variable('paper')})"
    edge = variable("grid") if shade is None else "none"
    box = element("rect", x=x, y=y, width=width, height=height, rx=radius, style=f"fill:{fill};stroke:{edge}")
    first = y + height / 2 + (4.5 if len(lines) == 1 else -3.5)
    texts = (
        _text(
            x + width / 2, first + 16 * index, line, anchor="middle", bold=not index, shade="muted" if index else "ink"
        )
        for index, line in enumerate(lines)
    )
    return box + Markup().join(texts)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", shade: str = "ink", bold: bool = False
) -> Markup:  # fmt: skip
    size, weight = (13, 600) if bold else (12, 400)
    return element("text", text, x=x, y=y, text_anchor=anchor, fill=variable(shade), font_size=size, font_weight=weight)


def _arrow(x0: float, y0: float, x1: float, y1: float, *, is_stream: bool = False) -> Markup:
    """A line with a small head at its end, along one axis."""
    dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
    size = 5 if is_stream else 3.5
    back_x, back_y = x1 - 1.6 * size * dx, y1 - 1.6 * size * dy
    head = (
        f"M{x1:g} {y1:g}L{back_x + size * dy:g} {back_y + size * dx:g}L{back_x - size * dy:g} {back_y - size * dx:g}Z"
    )
    colour = variable("ink" if is_stream else "muted")
    line = element(
        "path", d=f"M{x0:g} {y0:g}L{back_x:g} {back_y:g}", stroke=colour, stroke_width=3 if is_stream else 1.2
    )
    return line + element("path", d=head, fill=colour)
