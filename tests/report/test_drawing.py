from dataclasses import replace
from xml.etree import ElementTree

import pytest

from puna.report.drawing import WIDTH, HeadsDrawing, ModelDrawing, draw_heads, draw_model
from puna.report.svg import text_width

SIZES = ModelDrawing(
    vocab_size=4096, dim=256, n_layers=6, n_heads=8, n_kv_heads=2, head_dim=32, ffn_dim=704, tied_embeddings=False,
    embedding_parameters=1_048_576, attention_parameters=163_840, feed_forward_parameters=540_672,
    head_parameters=1_048_576,
)  # fmt: skip
LARGE = replace(
    SIZES, vocab_size=128_256, dim=16_384, n_layers=126, n_heads=128, n_kv_heads=8, head_dim=128, ffn_dim=53_248
)


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter("text")]


def test_the_model_shows_its_sizes() -> None:
    written = texts(draw_model(SIZES, "en", "t"))
    assert {"4,096 × 256", "8 × 32", "2 × 32", "256 → 704", "704 → 256", "164K", "541K", "× 6 layers"} <= set(written)
    assert written.count("1.05M") == 2


def test_a_tied_head_is_drawn_as_the_embedding_again() -> None:
    written = texts(draw_model(replace(SIZES, tied_embeddings=True, head_parameters=0), "en", "t"))
    assert "the embedding again" in written
    assert written.count("1.05M") == 1


@pytest.mark.parametrize("sizes", [SIZES, LARGE, replace(SIZES, n_kv_heads=8), replace(SIZES, n_kv_heads=1)])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_nothing_leaves_the_canvas(sizes: ModelDrawing, lang: str) -> None:
    for node in ElementTree.fromstring(draw_model(sizes, lang, "t")).iter():
        if node.tag == "rect":
            assert float(node.attrib["x"]) >= 0
            assert float(node.attrib["x"]) + float(node.attrib["width"]) <= WIDTH
        if node.tag == "text":
            width = text_width(node.text or "", float(node.attrib["font-size"]))
            start = float(node.attrib["x"]) - {"start": 0, "middle": 0.5, "end": 1}[node.attrib["text-anchor"]] * width
            assert 0 <= start <= start + width <= WIDTH


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(8, 2), (8, 1), (8, 8), (128, 8)])
def test_every_query_head_has_a_line_to_one_key_value_head(n_heads: int, n_kv_heads: int) -> None:
    nodes = list(ElementTree.fromstring(draw_heads(HeadsDrawing(n_heads=n_heads, n_kv_heads=n_kv_heads), "en", "t")))
    panels = {n_kv_heads, n_heads}
    tags = [node.tag for node in nodes]
    assert tags.count("circle") == tags.count("path") == n_heads * len(panels)
    assert tags.count("rect") == sum(panels)


def test_words_are_escaped() -> None:
    assert 'aria-label="a &lt; &#34;b&#34;"' in draw_model(SIZES, "en", 'a < "b"')
