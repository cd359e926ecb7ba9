"""Chat templates that mean harm: refused, or done, within two seconds and 200 MB; nothing of the process shows. B8."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from puna.errors import BadData, FormatError
from puna.tokens.chat import SECONDS, Message, render_chat
from puna.tokens.learning import learn_tokenizer
from puna.tokens.tokenizer import Tokenizer

KILL_SECONDS = 1.0  # to end the worker, on a machine that others use too
MOST_BYTES = 200 * 10**6
MESSAGES = [Message("user", "hello " * 20)]
MARKS = ("<class", "<module", "<function", "<built-in", "<bound", "<frame", "<code", "root:", "__", " at 0x")

RESOURCES = {
    "a constant that is folded": "{{ 'a' * 300000000 }}",
    "a list": "{{ [0] * 1000000000 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a product of many products": "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a width": "{{ '%0999999999d' % 1 }}",
    "a width among the arguments": "{{ '%*d' % (999999999, 1) }}",
    "a format": "{{ '{:999999999}'.format(1) }}",
    "a format within a format": "{{ '{:{}}'.format(1, 999999999) }}",
    "a format's filter": "{{ '%999999999s'|format(1) }}",
    "a folded filter": "{{ 'a'|center(300000000) }}",
    "a method": "{{ 'a'.zfill(999999999) }}",
    "a mapped filter": "{{ ['a', 'b']|map('center', 999999999)|list }}",
    "a replacement": "{% set t = 'a'.ljust(99999) %}{{ t.replace(' ', t) }}",
    "a replacing filter": "{% set t = 'a'.ljust(99999) %}{{ t|replace(' ', t) }}",
    "a join": "{% set t = 'a'.ljust(999999) %}{{ t.join(t) }}",
    "a translation": "{% set t = 'a'.ljust(999999) %}{{ t.translate({32: t}) }}",
    "tabs": "{{ ('\\t' * 999).expandtabs(999999) }}",
    "doubling by +": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by a macro": "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}{% set n = namespace(x='ab') %}"
    "{% for i in range(60) %}{% set n.x = d(n.x) %}{% endfor %}",
    "lists in lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x|tojson }}",
    "an indentation": "{{ [1]|tojson(indent=999999999) }}",
    "a range": "{{ range(1000000000)|list }}",
    "ranges in ranges": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "loops in loops": "{% set t = messages[0].content %}{% for a in t %}{% for b in t %}{% for c in t %}{% for d in t %}"
    "{{ a if a == 1 }}{% endfor %}{% endfor %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}",
    "a macro without end": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "brackets": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "a size": "{# " + "a" * 65536 + " #}",
    "rounding": "{{ 1.5|round(999999999, 'ceil') }}",
    "filler": "{{ [1]|batch(999999999, 'x')|list }}",
    "words": "{{ lipsum(n=999999) }}",
}

ESCAPES = (
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__.__base__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ ('{0.__class__}'|attr('format'))('') }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ['']|map('{0.__class__}'.format)|list }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__closure__[0].cell_contents }}",
    "{{ range.__code__ }}",
    "{{ lipsum.__globals__['os'].environ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner()._JOINER }}{{ joiner().__dict__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(__class__=1) }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n }}",
    "{{ dict.__call__.__globals__ }}{{ dict.mro() }}",
    "{{ self._TemplateReference__context }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|groupby('__class__')|list }}",
    "{{ messages|sort(attribute='content.__class__.__name__')|list|length|string + ''.__doc__ }}",
    "{{ (messages|map('upper')).gi_frame }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(content='other') }}",
    "{% generation %}{{ caller.__closure__ }}{% endgeneration %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.environ }}",
    "{% extends '/etc/passwd' %}",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_tokenizer(["a text to learn from"], 261)


def is_worker(child: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "puna.tokens.template_worker" in child.cmdline()
    return False


@contextmanager
def watched_children() -> Iterator[list[int]]:
    """The peak memory of the templates' workers while the block runs, in bytes, seen every few milliseconds."""
    peaks, done = [0], threading.Event()
    others = [child.pid for child in psutil.Process().children() if not is_worker(child)]  # of other tests

    def watch() -> None:
        is_done = False
        while not is_done:
            is_done = done.wait(0.003)  # and looks once more: a peak is remembered until the child ends
            for child in (child for child in psutil.Process().children() if child.pid not in others):
                with suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{child.pid}/status").read_text("ascii").splitlines()
                    peaks.append(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def test_there_are_as_many_attacks_as_the_catalogue_asks_for() -> None:
    assert len(RESOURCES) >= 15
    assert len(ESCAPES) >= 15


@pytest.mark.parametrize("template", RESOURCES.values(), ids=RESOURCES)
def test_a_template_that_wants_memory_or_time_is_refused_within_its_limits(tokenizer: Tokenizer, template: str) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}"
    render_chat(tokenizer, MESSAGES, add_generation_prompt=False)  # the worker runs
    tokenizer.chat_template = template
    with watched_children() as peaks:
        start = time.monotonic()
        with pytest.raises(FormatError, match="chat template: "):
            render_chat(tokenizer, MESSAGES, add_generation_prompt=False)
        seconds = time.monotonic() - start
    assert seconds < SECONDS + KILL_SECONDS
    assert 0 < max(peaks) < MOST_BYTES


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_reaches_for_the_process_gets_nothing(tokenizer: Tokenizer, template: str) -> None:
    tokenizer.chat_template = template
    try:
        text = render_chat(tokenizer, MESSAGES, add_generation_prompt=False)
    except (BadData, FormatError):
        return
    assert not [mark for mark in MARKS if mark in text]


def test_an_attack_does_not_change_the_next_rendering(tokenizer: Tokenizer) -> None:
    for template in ("{{ messages[0].update(content='x') }}", RESOURCES["doubling by ~"], RESOURCES["loops in loops"]):
        tokenizer.chat_template = template
        with pytest.raises(FormatError):
            render_chat(tokenizer, MESSAGES, add_generation_prompt=False)
        tokenizer.chat_template = "{{ messages[0].content }}"
        assert render_chat(tokenizer, MESSAGES, add_generation_prompt=False) == MESSAGES[0].content
