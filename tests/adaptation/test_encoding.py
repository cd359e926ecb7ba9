"""Which ids are learned: the answer and its end, by the template or as plain text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.adaptation.encoding import EncodedRecord, cut_record, encode_record
from puna.adaptation.records import Fault, Kind, Record, RecordSettings
from puna.errors import UsageError
from puna.tokens.chat import Message, builtin_template, encode_chat, render_chat
from puna.tokens.learning import learn_tokenizer
from puna.tokens.tokenizer import Tokenizer

PLAIN = learn_tokenizer(["the llama walks over the puna. " * 20], 280)
CHATTY = learn_tokenizer(["the llama walks over the puna. " * 20], 280)
CHATTY.chat_template = builtin_template(CHATTY)
FORGETFUL = learn_tokenizer(["the llama walks over the puna. " * 20], 280)  # as templates that drop earlier reasoning
FORGETFUL.chat_template = (
    "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '-' }};{% endfor %}"
)
TALK = ("Be brief.", "Who walks?", "The llama.", "Where?", "Over the puna.")


def record(kind: Kind, *contents: str) -> Record:
    """User and assistant in turn; of messages the first is the system's."""
    roles = {"text": ["assistant"], "messages": ["system", *["user", "assistant"] * 3]}.get(kind, ["user", "assistant"])
    messages = tuple(Message(role, text) for role, text in zip(roles, contents, strict=False))
    return Record(file="a.jsonl", place="a.jsonl:1", kind=kind, messages=messages)


def encode(what: Record, tokenizer: Tokenizer, **settings: Any) -> EncodedRecord:
    got = encode_record(what, tokenizer, RecordSettings(**settings))
    assert isinstance(got, EncodedRecord)
    return got


def learned(tokenizer: Tokenizer, got: EncodedRecord) -> str:
    return tokenizer.decode(got.ids[got.learn].tolist())


def test_of_a_pair_only_the_completion_and_the_end_are_learned() -> None:
    got = encode(record("pair", "the llama", " walks"), CHATTY)
    prompt, completion = PLAIN.encode("the llama"), PLAIN.encode(" walks")
    assert got.ids.tolist() == [PLAIN.bos_id, *prompt, *completion, PLAIN.eos_ids[0]]
    assert got.learn.tolist() == [False] * (1 + len(prompt)) + [True] * (len(completion) + 1)
    everything = encode(record("pair", "the llama", " walks"), CHATTY, loss="all")
    assert everything.learn.tolist() == [False] + [True] * (len(got.ids) - 1)


@pytest.mark.parametrize("loss", ["completion", "assistant", "all"])
def test_a_prompt_is_what_stands_before_the_last_answer_whatever_is_learned(loss: str) -> None:
    pair, text, talk = record("pair", "the llama", " walks"), record("text", "the llama"), record("messages", *TALK)
    assert encode(pair, CHATTY, loss=loss).prompt_tokens == 1 + len(PLAIN.encode("the llama"))
    assert encode(text, CHATTY, loss=loss).prompt_tokens == 0
    prompt = encode_chat(CHATTY, talk.messages[:-1], add_generation_prompt=True).ids
    got = encode(talk, CHATTY, loss=loss)
    assert got.ids[: got.prompt_tokens].tolist() == prompt
    asked = replace(talk, messages=talk.messages[:-1])
    assert encode(asked, CHATTY, loss=loss).prompt_tokens == 0
    assert {piece.prompt_tokens for piece in cut_record(got, 8)} == {0}


def test_a_template_without_a_mask_tells_its_prompt_by_rendering_it() -> None:
    talk = record("messages", *TALK)
    got = encode(talk, FORGETFUL)
    prompt = encode_chat(FORGETFUL, talk.messages[:-1], add_generation_prompt=True).ids
    assert got.ids[: got.prompt_tokens].tolist() == prompt


@pytest.mark.parametrize("kind", ["question", "instruction"])
def test_a_question_is_plain_without_a_template_and_a_turn_with_one(kind: Kind) -> None:
    asked = record(kind, "Who?", "The llama.")
    assert PLAIN.decode(encode(asked, PLAIN).ids.tolist()) == "<|begin_of_text|>Who?\nThe llama.<|end_of_text|>"
    templated = encode(asked, CHATTY)
    assert templated.ids.tolist() == encode_chat(CHATTY, asked.messages, add_generation_prompt=False).ids
    assert encode(asked, PLAIN, template="builtin").ids.tolist() == templated.ids.tolist()
    assert encode(asked, CHATTY, chat=False).ids.tolist() == encode(asked, PLAIN).ids.tolist()
    assert encode(record("pair", "Who?", "The llama."), CHATTY, chat=True).ids.tolist() == templated.ids.tolist()


def test_the_mask_is_what_the_answers_add_to_the_rendered_text() -> None:
    talk = record("messages", *TALK)
    prompts = [
        render_chat(CHATTY, talk.messages[:end], add_generation_prompt=is_prompt)
        for end, is_prompt in ((2, True), (3, False), (4, True), (5, False))
    ]
    answers = [prompts[1].removeprefix(prompts[0]), prompts[3].removeprefix(prompts[2])]
    assert answers == ["The llama.<|eot_id|>", "Over the puna.<|eot_id|>"]
    assert learned(CHATTY, encode(talk, CHATTY)) == answers[1]
    assert learned(CHATTY, encode(talk, CHATTY, loss="assistant")) == "".join(answers)
    assert learned(CHATTY, encode(talk, CHATTY, loss="all")) == prompts[3].removeprefix("<|begin_of_text|>")


def test_a_template_without_a_mask_still_tells_the_last_answer_from_its_prompt() -> None:
    talk = Record(file="a", place="a:1", kind="messages", messages=record("messages", *TALK).messages[1:])
    assert learned(FORGETFUL, encode(talk, FORGETFUL)) == "Over the puna.;"
    got = encode_record(talk, FORGETFUL, RecordSettings(loss="assistant"))
    assert got == Fault(place="a:1", reason="no mask from the chat template")


def test_what_the_template_refuses_is_a_fault() -> None:
    refusing = learn_tokenizer(["the llama walks over the puna. " * 20], 280)
    refusing.chat_template = "{{ raise_exception('no') }}"
    assert encode_record(record("messages", *TALK), refusing, RecordSettings()) == Fault(
        place="a.jsonl:1", reason="refused by the chat template"
    )


@pytest.mark.parametrize(
    ("kind", "tokenizer", "settings", "words"),
    [
        ("messages", PLAIN, {}, "a.jsonl:1: messages: the model brings no chat template"),
        ("pair", PLAIN, {"chat": True}, "a.jsonl:1: pair: the model brings no chat template"),
        ("messages", CHATTY, {"chat": False}, "expected true for messages, got false"),
        ("pair", CHATTY, {"template": "builtin"}, "expected model, got builtin"),
    ],
)
def test_a_template_that_is_not_there_or_not_wanted(
    kind: Kind, tokenizer: Tokenizer, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        encode_record(record(kind, *TALK), tokenizer, RecordSettings(**settings))
    assert "brings no" not in words or "records.template=builtin takes Llama 3's headers" in caught.value.hint


@given(text=st.text(min_size=1, max_size=80), seq=st.integers(1, 20))
def test_every_id_of_a_text_is_a_target_once_however_it_is_cut(text: str, seq: int) -> None:
    pieces = list(cut_record(encode(record("text", text), PLAIN), seq))
    targets = [int(i) for piece in pieces for i in piece.ids[1:][piece.learn[1:]]]
    assert targets == [*PLAIN.encode(text), PLAIN.eos_ids[0]]
    assert all(2 <= len(piece.ids) <= seq + 1 for piece in pieces)


@given(contents=st.lists(st.text(max_size=20), min_size=2, max_size=7))
def test_whatever_is_learned_is_learned_by_a_wider_loss_too(contents: list[str]) -> None:
    talk = record("messages", *contents)
    narrow, middle, wide = (encode(talk, CHATTY, loss=loss) for loss in ("completion", "assistant", "all"))
    assert np.array_equal(narrow.ids, wide.ids)
    assert not (narrow.learn & ~middle.learn).any()
    assert not (middle.learn & ~wide.learn).any()


def test_a_template_that_asks_for_the_day_gives_the_same_ids_every_day(shared_data: Path) -> None:
    tokenizer = learn_tokenizer(["the llama walks over the puna. " * 20], 280)
    tokenizer.chat_template = (shared_data / "templates" / "meta-llama-Llama-3.2-3B-Instruct.jinja").read_text("utf-8")
    talk = record("messages", *TALK)
    assert "Today Date: 26 Jul 2024\n" in tokenizer.decode(encode(talk, tokenizer).ids.tolist())
    later = encode(talk, tokenizer, date_string="3 Feb 2031")
    assert "Today Date: 3 Feb 2031\n" in tokenizer.decode(later.ids.tolist())
    assert learned(tokenizer, later) == "Over the puna.<|eot_id|>"
