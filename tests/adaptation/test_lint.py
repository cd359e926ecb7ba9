"""The lint: nothing disappears, and what would teach nothing or the wrong ids stops a run."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.adaptation.lint import Linted, lint_records, refusal
from puna.adaptation.records import Fault, Record, RecordSettings
from puna.tokens.chat import Message, builtin_template
from puna.tokens.learning import learn_tokenizer
from puna.tokens.tokenizer import Tokenizer

PLAIN = learn_tokenizer(["the llama walks over the puna. " * 20], 280)
CHATTY = learn_tokenizer(["the llama walks over the puna. " * 20], 280)
CHATTY.chat_template = builtin_template(CHATTY)
BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
TWICE = "{{ bos_token }}{{ bos_token }}"
WITHOUT_END = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
MARKED = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
MARKED += "{% else %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"


def text(content: str) -> Record:
    return Record(file="a", place="a:t", kind="text", messages=(Message("assistant", content),))


def pair(prompt: str, answer: str) -> Record:
    return Record(file="a", place="a:p", kind="pair", messages=(Message("user", prompt), Message("assistant", answer)))


def talk(*contents: str) -> Record:
    roles = ("user", "assistant") * 3
    messages = tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))
    return Record(file="a", place="a:m", kind="messages", messages=messages)


def lint(*records: Record | Fault, tokenizer: Tokenizer = CHATTY, seq: int = 60, anyway: bool = False) -> Linted:
    return lint_records(records, tokenizer, RecordSettings(), seq, anyway=anyway)


GOOD = [pair("who?", "a llama"), talk("who?", "a llama"), text(f"about `{BOS}` and `{EOT}`, `<|end_of_text|>`: " * 9)]
BAD = [
    (Fault(place="a:1", reason="not JSON"), "not JSON"),
    (talk("who?"), "nothing to learn"),
    (text(" \n"), "nothing to learn"),
    (pair("who?", " "), "empty answer"),
    (talk("who?", "", "why?", "so"), "empty answer"),
    (pair("who? " * 40, "a llama"), "longer than a row of 60"),
    (pair("who?", "a llama " * 40), "longer than a row of 60"),
    (pair(BOS + "who?", "a llama"), "BOS doubled"),
    (text(f" {BOS}a llama"), "BOS doubled"),
    (text(f"a llama{EOT}"), "template doubled"),
    (talk(f"who?{EOT}", "a llama"), "template doubled"),
    (pair("who?", "a llama<|end_of_text|>"), "template doubled"),
    (text(f"who?{EOT}\n<|start_header_id|>a llama"), "template doubled"),
]
LOOKS_WRONG = ("BOS doubled", "template doubled")


def test_good_records_are_all_used() -> None:
    linted = lint(*GOOD)
    assert (linted.counts.used, linted.counts.dropped, linted.counts.reasons) == (3, 0, {})
    assert refusal(linted) is None


@pytest.mark.parametrize(("bad", "why"), BAD)
def test_one_bad_record_in_a_hundred_is_dropped_more_are_refused(bad: Record | Fault, why: str) -> None:
    linted = lint(*GOOD * 33, bad)
    assert (linted.counts.used, linted.counts.dropped, linted.counts.reasons) == (99, 1, {why: 1})
    assert linted.counts.examples == {why: [bad.place]}
    assert refusal(linted) is None
    error = refusal(lint(*GOOD * 32, bad))
    assert error is not None
    assert f"1 of 97 records cannot be used: {why}: 1 ({bad.place})" in error.message
    assert error.hint


@pytest.mark.parametrize(("bad", "why"), BAD)
def test_what_only_looks_wrong_is_used_when_told_to(bad: Record | Fault, why: str) -> None:
    counts = lint(*GOOD, bad, anyway=True).counts
    expected = (4, {}, {why: 1}) if why in LOOKS_WRONG else (3, {why: 1}, {})
    assert (counts.used, counts.reasons, counts.doubts) == expected


@given(st.lists(st.sampled_from([*GOOD, *(bad for bad, _ in BAD)]), max_size=20), st.booleans())
def test_dropped_and_used_are_all(records: list[Record | Fault], anyway: bool) -> None:
    linted = lint(*records, anyway=anyway)
    assert linted.counts.used + linted.counts.dropped == len(records)
    assert sum(linted.counts.reasons.values()) == linted.counts.dropped
    assert len(linted.records) == linted.counts.used
    assert linted.counts.examples.keys() == linted.counts.reasons.keys() | linted.counts.doubts.keys()
    assert all(1 <= len(places) <= 3 for places in linted.counts.examples.values())


def said(*records: Record | Fault, **how: Any) -> str:
    error = refusal(lint(*records, **how))
    assert error is not None
    return f"{error.message}; {error.hint}"


def test_faults_of_the_whole_set_say_what_is_behind_them() -> None:
    assert "BOS doubled: 2 (a:t, a:t) of 3; take BOS out" in said(*[text(f"{BOS}a llama")] * 2, text("a llama"))
    assert "template doubled: 2 (a:t, a:t) of 3; give plain" in said(*[text(f"a llama{EOT}")] * 2, text("a llama"))
    assert "no record at all" in said()
    assert "the longest record needs 330" in said(pair("", "abc" * 109 + "ab"), tokenizer=PLAIN)
    assert "not JSON: 5 (a:1, a:1, a:1)" in said(*[Fault(place="a:1", reason="not JSON")] * 5)


def test_a_template_that_doubles_bos_or_learns_no_end_is_found() -> None:
    tokenizer = learn_tokenizer(["the llama walks over the puna. " * 20], 280)
    tokenizer.chat_template = TWICE + CHATTY.chat_template if CHATTY.chat_template is not None else ""
    assert "BOS doubled" in said(talk("who?", "a llama"), tokenizer=tokenizer)
    tokenizer.chat_template = WITHOUT_END
    assert "no end is learned in any of 1 records" in said(talk("who?", "a llama"), tokenizer=tokenizer)
    assert refusal(lint(talk("who?", "a llama"), text("a llama"), tokenizer=tokenizer)) is None


def test_marks_in_plain_characters_count_only_where_the_template_writes_them() -> None:
    tokenizer = learn_tokenizer(["the llama walks over the puna. " * 20], 280)
    tokenizer.chat_template = MARKED
    assert lint(talk("[INST] who? [/INST]", "a"), tokenizer=tokenizer).counts.reasons == {"template doubled": 1}
    assert lint(text("[INST] who? [/INST]"), tokenizer=tokenizer).counts.used == 1
    assert lint(talk("[INST] who? [/INST]", "a")).counts.used == 1
