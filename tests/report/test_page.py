import re
from html.parser import HTMLParser

import pytest

from puna.errors import UsageError
from puna.report.charts import Axis, BarChart, Bars, LineChart, Series
from puna.report.drawing import HeadsDrawing
from puna.report.page import Commands, Fact, Facts, Figure, Formula, Item, Quote, Section, Table, render_page

EVERYTHING: tuple[Item, ...] = (
    Facts(facts=(Fact(label="Loss", value="3.21", note="began at 8.3"), Fact(label="Bits", value="1.3"))),
    Figure(
        content=LineChart(x=Axis(label="t"), y=Axis(label="y"), series=(Series(name="s", x=(0, 1), y=(1, 0)),)),
        caption="a `curve`",
    ),
    Figure(
        content=BarChart(
            axis=Axis(label="v"),
            categories=("c",),
            series=(Bars(name="before", values=(1,)), Bars(name="after", values=(2,))),
        ),
        caption="bars",
    ),
    Figure(content=HeadsDrawing(n_heads=4, n_kv_heads=2), caption="heads"),
    Table(columns=("a", "b"), rows=(("x", "1"), ("y", "2")), caption="a table", strong_rows=(1,)),
    Quote(prompt="def f(", continuation="x):\n\treturn <x> & 中\x00", caption="greedy"),
    Formula(lines=("x_{j+E/2} = b^{−2θ_{j}} cos mθ_{j} < 1",), symbols=(("b", "base", "10"),)),
    Commands(commands=(("puna plan llama-3-8b", "counts"),)),
)
SECTIONS = (Section(title="One & only", words=("It has 24 GB of `RAM`.",), items=EVERYTHING), Section(title="Two"))
VOID = {"meta", "circle", "path", "rect", "br"}


class Outline(HTMLParser):
    """Collects tags, ids and links, and checks that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value or "")
            if key in ("href", "src"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        while self.open[-1] != tag:
            assert self.open.pop() in VOID
        self.open.pop()


def page(sections: tuple[Section, ...] = SECTIONS, lang: str = "en") -> str:
    return render_page("A title", "In `short`", sections, lang)


def test_bytes_depend_on_the_data_alone() -> None:
    assert page() == page()


def test_the_page_is_one_file_without_script_that_loads_nothing() -> None:
    outline = Outline(page())
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    assert all(link.startswith("#") for link in outline.links)
    assert not re.search(r"@import|url\((?!#)|https?:", page())


def test_every_element_is_closed() -> None:
    assert Outline(page()).open == []


def test_ids_are_unique_and_every_link_finds_its_target() -> None:
    outline = Outline(page())
    assert len(outline.ids) == len(set(outline.ids))
    assert {link[1:] for link in outline.links} <= set(outline.ids)


def test_the_contents_list_every_section() -> None:
    assert re.findall(r'<li><a href="#section-\d+">(.*?)</a>', page()) == ["One &amp; only", "Two"]


def test_a_chart_has_a_wide_and_a_narrow_form_and_a_drawing_one() -> None:
    text = page()
    assert text.count('<div class="wide">') == text.count('<div class="narrow">') == 2
    assert text.count('<div class="drawing">') == 1


def test_text_from_outside_is_escaped_and_controls_are_shown() -> None:
    assert "return &lt;x&gt; &amp; 中␀</span>" in page()
    assert "<b>bold" not in page((Section(title="<b>bold", words=("<b>bold",)),))


def test_words_set_code_and_keep_numbers_with_their_units() -> None:
    assert "<p>It has 24\u00a0GB of <code>RAM</code>.</p>" in page()


def test_formulas_set_indices_powers_and_letters() -> None:
    low = "<i>θ</i><sub><i>j</i></sub>"
    assert f"<i>x</i><sub><i>j</i>+<i>E</i>/2</sub> = <i>b</i><sup>−2{low}</sup> cos <i>m</i>{low} &lt; 1</p>" in page()


def test_a_table_aligns_numbers_right_unless_told_otherwise() -> None:
    assert '<tr class="strong"><td class="l">y</td><td class="r">2</td></tr>' in page()
    table = Table(columns=("a", "b"), rows=(("x", "1"),), align="rl")
    assert '<td class="r">x</td><td class="l">1</td>' in page((Section(title="t", items=(table,)),))


def test_light_and_dark_define_the_same_colours() -> None:
    light, dark = (re.findall(r"--([a-z0-9-]+): #", part) for part in page().split("prefers-color-scheme: dark")[:2])
    assert light == dark
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", page())) <= {*light, "sans", "serif", "mono"}


def test_the_page_says_its_language() -> None:
    assert '<html lang="zh-Hant">' in page(lang="zh")
    assert "目錄" in page(lang="zh")
    with pytest.raises(UsageError):
        page(lang="xx")
