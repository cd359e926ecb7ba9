from markupsafe import Markup

from puna.report.svg import element, embed_svg, placeholder, printable, text_width, variable

DRAWN = f"""<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9" width="9pt">
<metadata>now</metadata><defs><style>*{{stroke: red}}</style><clipPath id="c"/></defs>
<g id="unused"><path id="m" clip-path="url(#c)" style="stroke: {placeholder("series-2")}"/></g>
<use xlink:href="#m"/><text style="font-family: 'DejaVu Sans'; fill: {placeholder("ink")}">a &lt; b #fa5000 id="m"</text>
</svg>"""


def test_placeholders_become_the_pages_colours_in_styles_only() -> None:
    svg = embed_svg(DRAWN, "f", "t")
    assert "stroke: var(--series-2)" in svg
    assert "fill: var(--ink)" in svg
    assert 'a &lt; b #fa5000 id="m"</text>' in svg


def test_ids_are_prefixed_and_unused_ones_dropped() -> None:
    svg = embed_svg(DRAWN, "f1", "t")
    assert 'id="f1-m"' in svg
    assert 'href="#f1-m"' in svg
    assert "url(#f1-c)" in svg
    assert "unused" not in svg


def test_nothing_of_an_embedded_drawing_reaches_the_rest_of_the_page() -> None:
    svg = embed_svg(DRAWN, "f", "t")
    assert not any(word in svg for word in ("metadata", "<style", "DejaVu", "xmlns", "<?xml", "9pt"))


def test_a_drawing_has_a_name_for_screen_readers() -> None:
    assert 'role="img" aria-label="loss &amp; &lt;more&gt;"' in embed_svg(DRAWN, "f", "loss & <more>")


def test_control_characters_are_shown_and_text_is_kept() -> None:
    assert printable("a\x00\x1b\x7f\ud800\tb\n中") == "a␀␛␡�\tb\n中"


def test_an_element_escapes_strings_and_passes_markup() -> None:
    assert element("text", "<", Markup("<b/>"), font_size=12.0) == '<text font-size="12">&lt;<b/></text>'
    assert variable("muted") == "var(--muted)"


def test_wide_characters_count_a_whole_em() -> None:
    assert text_width("中文", 10) == 20
    assert text_width("ab", 10) < 15
