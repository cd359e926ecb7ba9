"""The renderer alone: what Hugging Face's environment offers, the place of generation blocks, and each cap's edge."""

import json
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from puna.tokens.chat_template import MAX_RANGE, MAX_TEMPLATE_BYTES, MAX_TEXT, render

NOW = datetime(2024, 7, 26, 12, 30)
MESSAGES = [
    {"role": "system", "content": "Tom & <Jerry>"},
    {"role": "user", "content": "  What's 2 + 2?\n"},
    {"role": "assistant", "content": "四 \U0001f999"},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "."},
]


def rendered(template: str, **variables: Any) -> dict[str, Any]:
    own = {"messages": MESSAGES, "add_generation_prompt": False, "tools": None, "documents": None}
    return render({"template": template, "variables": own | variables, "now": NOW.isoformat()})


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}\n  {% if loop.last %}{% break %}{% endif %}\n  {{ m.role }}\n{% endfor %}\n",
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m }}{% endfor %}",
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2, sort_keys=true) }}",
        "{{ messages | tojson(ensure_ascii=true, separators=(',', ':')) }}",
        "{% set ns = namespace(first=true, n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ dict(a=1, b=2) | items | list }}{{ dict.fromkeys(['a', 'b'], 3) }}",
        "{{ messages[0].content | e }}{{ messages[1].content.strip().split('+')[-1] }}",
        "{{ '%s and %5.2f' % ('a', 1) }}{{ '{:>5}|{}'.format('b', 3) }}{{ '%s' | format('c') }}",
        "{% macro turn(m) %}[{{ m.role }}: {{ caller() }}]{% endmacro %}{% call turn(messages[0]) %}x{% endcall %}",
        "{{ messages | map(attribute='role') | unique | join(', ') }}{{ 'ab' * 3 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ [1] + [2] }}",
        "{{ undefined_name }}{{ tools is none }}{{ documents is defined }}{{ messages[-1].name is defined }}",
        "{{ messages[0].content | replace('Tom', 'Tim') | upper | center(30) }}{{ 'a\nb' | indent(4, true) }}",
        "{% for i in range(3) %}{{ i }}{% endfor %}{{ range(2, 9, 3) | list }}{{ 'a'.ljust(4) ~ 1 ~ none }}",
    ],
)
def test_text_equals_transformers(template: str) -> None:
    theirs, _ = render_jinja_template([MESSAGES], chat_template=template)
    assert rendered(template) == {"text": theirs[0], "spans": None}


@pytest.mark.parametrize(
    "block",
    [
        "{% generation %}{{ m.content }}<end>{% endgeneration %}",
        "{{- 'A: ' }}\n  {%- generation -%}\n {{ m.content | trim }} {{- '<end>' -}} {%- endgeneration %}",
        "{% if m.content %}{% generation %}{% for c in m.content %}{{ c }} {% endfor %}{% endgeneration %}{% endif %}!",
    ],
)
def test_generation_blocks_stand_where_transformers_finds_them(block: str) -> None:
    template = "{% for m in messages %}{% if m.role == 'assistant' %}" + block + "{% else %}{{ m.content }}{% endif %}"
    template += "{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    for messages in (MESSAGES, MESSAGES[:2], MESSAGES[2:]):
        theirs, spans = render_jinja_template([messages], chat_template=template, return_assistant_tokens_mask=True)
        assert rendered(template, messages=messages) == {"text": theirs[0], "spans": spans[0]}


def test_a_template_without_blocks_knows_no_spans_and_one_whose_blocks_are_not_reached_has_none() -> None:
    assert rendered("generation {{ 'generation' }}")["spans"] is None
    assert rendered("{% if false %}{%- generation -%}{% endgeneration %}{% endif %}x")["spans"] == []


def test_the_day_is_the_one_that_was_asked_for() -> None:
    assert rendered("{{ strftime_now('%d %b %Y') }}")["text"] == NOW.strftime("%d %b %Y") == "26 Jul 2024"


def test_a_refusal_carries_the_templates_words() -> None:
    assert rendered("{{ raise_exception('only ' ~ messages | length) }}") == {"refusal": "only 5"}


@pytest.mark.parametrize(
    ("template", "line"),
    [("{{ a }", 1), ("a\n{% if %}", 2), ("\n\n{% endfor %}", 3), ("{{ 1 | no_such_filter }}", 1), ("\n{% for %}", 2)],
)
def test_broken_syntax_names_its_line(template: str, line: int) -> None:
    key, expected, got = rendered(template)["fault"]
    assert (key, expected) == (f"line {line}", "Jinja")
    assert got


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{{ messages[0] / 0 }}", "rendering"),
        ("{{ 1 / 0 }}", "rendering"),
        ("{{ nothing.at.all }}", "rendering"),
        ("{{ messages.append(1) }}", "rendering"),
        ("{% set n = namespace(_x=1) %}", "rendering"),
        ("{% include 'a' %}", "rendering"),
        ("{{ 'a'.center(99999999) }}", "center"),
        ("{{ 'a' | center(99999999) }}", "center"),
        ("{{ 'a' * 99999999 }}", "*"),
        ("{{ 99999999 * 'a' }}", "*"),
        ("{{ 2 ** 99999 }}", "number"),
        ("{{ '%9999999d' % 1 }}", "format"),
        ("{{ '{:9999999}'.format(1) }}", "format"),
        ("{{ '{:9999999}' | attr('format') }}", "format"),
        ("{{ ('a' * 4000000) + ('a' * 4000000) }}", "text"),
        ("{{ ('a' * 4000000) | replace('a', 'bb') }}", "replace"),
        ("{{ ('a' * 4000000).replace('a', 'bb') }}", "replace"),
        ("{{ ('a' * 4000).join(['b'] * 4000) }}", "join"),
        ("{{ (['b'] * 4000) | join('a' * 4000) }}", "join"),
        ("{% set x %}{{ 'a' * 4000000 }}{{ 'a' * 4000000 }}{% endset %}", "text"),
    ],
)
def test_what_breaks_or_grows_is_named(template: str, key: str) -> None:
    assert rendered(template)["fault"][0] == key


@pytest.mark.parametrize(
    ("template", "most", "key"),
    [
        ("{{ 'a' * %d }}", MAX_TEXT, "*"),
        ("{%% for i in range(%d) %%}{%% endfor %%}", MAX_RANGE, "range"),
        (
            "{{ messages[0].content[:0] }}{%% for i in range(50000) %%}{%% endfor %%}{{ range(%d) | length }}",
            50_000,
            "range",
        ),
        ("{%% for i in range(8) %%}{{ 'a'.ljust(%d) }}{%% endfor %%}", MAX_TEXT // 8, "output"),
    ],
)
def test_a_cap_lets_through_what_it_allows_and_no_more(template: str, most: int, key: str) -> None:
    assert "text" in rendered(template % most)
    assert rendered(template % (most + 1))["fault"][0] == key


def test_a_template_of_64_kib_is_rendered_and_one_byte_more_is_refused() -> None:
    assert rendered("{##}" + "é" * (MAX_TEMPLATE_BYTES // 2 - 2))["text"]
    assert rendered("{##}" + "é" * (MAX_TEMPLATE_BYTES // 2 - 2) + "a")["fault"][0] == "size"


def test_steps_of_ranges_are_counted_anew_in_each_rendering() -> None:
    for _ in range(3):
        assert rendered("{{ range(99999) | length }}")["text"] == "99999"


def test_the_worker_loads_neither_torch_nor_tokenizers() -> None:
    code = "import json, sys, puna.tokens.template_worker; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert "jinja2" in loaded
    assert not {"torch", "tokenizers", "numpy", "tiktoken"} & set(loaded)
