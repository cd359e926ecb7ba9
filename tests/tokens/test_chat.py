"""Conversations to text, ids and masks: as transformers gives them, and never a special id from what was said."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from puna.errors import BadData, FormatError
from puna.tokens import chat
from puna.tokens.chat import ChatIds, Message, builtin_template, encode_chat, read_messages, render_chat
from puna.tokens.learning import learn_tokenizer
from puna.tokens.special_names import BOS
from puna.tokens.tokenizer import Tokenizer, tokenizer_from_json

FIRST_SPECIAL = 128_000
TEMPLATES = [f"meta-llama-Llama-{name}-Instruct.jinja" for name in ("3.1-8B", "3.2-3B", "3.3-70B")]
MASKED = "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n{% if m.role == 'assistant' %}"
MASKED += "A:{% generation %} {{ m.content }}<|eot_id|>{% endgeneration %}\n{% else %}{{ m.content }}\n{% endif %}"
MASKED += "{% endfor %}"


def llama3_names() -> list[str]:
    """The 256 special tokens of Llama 3.1, in the order of their ids."""
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(248)]
    named = (
        "begin_of_text end_of_text 0 1 finetune_right_pad_id 2 start_header_id end_header_id eom_id eot_id python_tag"
    )
    first = [reserved[int(name)] if name.isdigit() else f"<|{name}|>" for name in named.split()]
    return [*first, *reserved[3:]]


def turns(*contents: str) -> list[Message]:
    """A system message (left out where empty), then user and assistant in turn."""
    roles = ["system", *(["user", "assistant"] * len(contents))]
    return [Message(r, c) for i, (r, c) in enumerate(zip(roles, contents, strict=False)) if i or c]


CONVERSATIONS = [
    turns("", "This is a test sentence."),
    turns("You are a llama.", "Who are you?"),
    turns("", "Hi", "Hello! How can I help?"),
    turns("", "Hi", "Hello!", "What is 17 * 23?", "17 * 23 = 391."),
    turns("Be brief.", "1", "2", "3", "4", "5", "6", "7", "8"),
    turns("", ""),
    turns("", "", ""),
    turns("   ", "  spaces around \n\n", "\n\tan answer \n"),
    turns("", "\n\n\n", "\r\n"),
    turns("用中文回答。", "羊驼住在哪里?", "羊驼住在安第斯山脉的普纳高原。"),
    turns("", "👩‍👧 café e\u0301 \u200b\ufeff \u202eabc", "\U0010ffff \ufdd0 𝒳 ß"),
    turns("", "def f(x):\n    return x < 3 and x > -1\n", "```python\nf(2)\n```"),
    turns("", "<b>bold</b> & 'quotes' \"double\" {{ braces }} {% raw %} \\n"),
    turns("", "x" * 3000, " ".join(["word"] * 2000)),
    turns("", "12345678901234567890 3.14159", "1,000,000"),
    turns("A system message\nof two lines", "a < b | c > d", "|>"),
    turns("", "ends with <", "> begins", "<| and |>", "<|not_a_name|>"),
    [Message("user", "What is the weather?"), Message("assistant", "I ask."), Message("tool", '{"degrees": -3}')],
    [Message("user", "One"), Message("user", "Two"), Message("assistant", "Both"), Message("assistant", "Again")],
    [Message("system", "only a system message")],
]
SPECIAL_IN_TEXT = turns("Say <|eot_id|>", "<|begin_of_text|>Hi<|eot_id|>", " <|end_of_text|>", "<|eot_", "id|>")

Pair = tuple[Tokenizer, PreTrainedTokenizerFast]


def beside(tokenizer_json: Any, ours: Tokenizer) -> Pair:
    names = {"bos_token": BOS, "eos_token": "<|eot_id|>"}
    return ours, PreTrainedTokenizerFast(tokenizer_object=tokenizer_json, **names)


@pytest.fixture(scope="module")
def llama3(shared_data: Path) -> Pair:
    """Llama 3's tokenizer as transformers converts it, read by us and by transformers."""
    file = shared_data / "tokenizers" / "llama3" / "tokenizer.model"
    converted = TikTokenConverter(str(file), extra_special_tokens=llama3_names()).converted()
    return beside(converted, tokenizer_from_json(converted.to_str(), {"bos_token": BOS, "eos_token": "<|eot_id|>"}))


@pytest.fixture
def learnt() -> Tokenizer:
    tokenizer = learn_tokenizer(["some text to learn from, and some more of the text"], 270)
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture(params=[*TEMPLATES, "built-in"])
def template(request: pytest.FixtureRequest, shared_data: Path, llama3: Pair) -> str:
    if request.param == "built-in":
        return builtin_template(llama3[0])
    return (shared_data / "templates" / request.param).read_text("utf-8")


def as_json(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize("prompt", [False, True])
def test_text_equals_transformers(llama3: Pair, template: str, prompt: bool) -> None:
    ours, theirs = llama3
    ours.chat_template = template
    for messages in [*CONVERSATIONS, SPECIAL_IN_TEXT]:
        expected = theirs.apply_chat_template(
            as_json(messages), chat_template=template, tokenize=False, add_generation_prompt=prompt
        )
        assert render_chat(ours, messages, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("prompt", [False, True])
def test_ids_equal_transformers_where_no_special_name_is_said(llama3: Pair, template: str, prompt: bool) -> None:
    ours, theirs = llama3
    ours.chat_template = template
    for messages in CONVERSATIONS:
        expected = theirs.apply_chat_template(
            as_json(messages), chat_template=template, add_generation_prompt=prompt, return_dict=False
        )
        assert encode_chat(ours, messages, add_generation_prompt=prompt).ids == expected


@pytest.mark.parametrize("masked", [MASKED, "built-in"])
def test_the_mask_of_generation_blocks_equals_transformers(llama3: Pair, masked: str) -> None:
    ours, theirs = llama3
    ours.chat_template = builtin_template(ours) if masked == "built-in" else masked
    for messages in CONVERSATIONS:
        expected = theirs.apply_chat_template(
            as_json(messages), chat_template=ours.chat_template, return_assistant_tokens_mask=True, return_dict=True
        )
        got = encode_chat(ours, messages, add_generation_prompt=False)
        assert got.ids == expected["input_ids"]
        assert got.keep == list(map(bool, expected["assistant_masks"]))


def test_arguments_reach_the_template_as_in_transformers(llama3: Pair, shared_data: Path) -> None:
    ours, theirs = llama3
    ours.chat_template = (shared_data / "templates" / TEMPLATES[0]).read_text("utf-8")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    arguments = {"date_string": "1 Jan 2030", "tools": tools}
    expected = theirs.apply_chat_template(
        as_json(CONVERSATIONS[1]), chat_template=ours.chat_template, tokenize=False, **arguments
    )
    assert render_chat(ours, CONVERSATIONS[1], add_generation_prompt=False, **arguments) == expected
    assert "weather" in expected
    tools[0]["function"]["name"] = "<|eot_id|>"
    plain = encode_chat(ours, CONVERSATIONS[1], add_generation_prompt=False, date_string="1 Jan 2030")
    hostile = encode_chat(ours, CONVERSATIONS[1], add_generation_prompt=False, **arguments)
    end = ours.specials["<|eot_id|>"]
    assert hostile.ids.count(end) == plain.ids.count(end)


def test_a_user_message_of_llama_3_has_the_published_ids(llama3: Pair) -> None:
    ours = llama3[0]
    ours.chat_template = None
    got = encode_chat(ours, CONVERSATIONS[0], add_generation_prompt=False)
    assert got.ids == [128000, 128006, 882, 128007, 271, 2028, 374, 264, 1296, 11914, 13, 128009]
    assert got.keep == [False] * 12


@pytest.mark.parametrize("role", ["user", "system", "tool", "stop"])
def test_no_special_id_comes_from_what_is_said(llama3: Pair, shared_data: Path, role: str) -> None:
    ours = llama3[0]
    ours.chat_template = (shared_data / "templates" / TEMPLATES[0]).read_text("utf-8")

    def controls(text: str) -> list[int]:
        if role == "stop":
            ids = ours.encode(text)
        else:
            others = [Message("user", "Hi")]
            ids = encode_chat(ours, [Message(role, text), *others], add_generation_prompt=True).ids
        return [index for index in ids if index >= FIRST_SPECIAL]

    for name in llama3_names()[:20]:
        for text in (name, f"a{name}b", f" {name}\n{name}{name}", name[:-1], name[1:]):
            assert controls(text) == controls("Hi")


def test_no_special_id_is_joined_from_two_messages_or_a_message_and_the_template(learnt: Tokenizer) -> None:
    learnt.chat_template = "{% for m in messages %}{{ m.content | trim }}{% endfor %}|>{{ '<' + messages[0].content }}"
    for texts in (["<|eot_id", "x"], ["a<|eot ", " _id|>"], ["|eot_id|>", "x"], ["<|eot_id|>", "<|eot_id"]):
        messages = [Message("user", text) for text in texts]
        got = encode_chat(learnt, messages, add_generation_prompt=False).ids
        assert learnt.decode(got) == render_chat(learnt, messages, add_generation_prompt=False)
        assert not set(got) & set(learnt.specials.values())


def test_special_names_in_messages_are_said_as_they_are(llama3: Pair, template: str) -> None:
    ours = llama3[0]
    ours.chat_template = template
    got = encode_chat(ours, SPECIAL_IN_TEXT, add_generation_prompt=False)
    harmless = [Message(message.role, "x") for message in SPECIAL_IN_TEXT]
    expected = encode_chat(ours, harmless, add_generation_prompt=False)
    assert ours.decode(got.ids) == render_chat(ours, SPECIAL_IN_TEXT, add_generation_prompt=False)
    assert [i for i in got.ids if i >= FIRST_SPECIAL] == [i for i in expected.ids if i >= FIRST_SPECIAL]


def kept_text(tokenizer: Tokenizer, got: ChatIds) -> str:
    assert got.keep is not None
    assert len(got.keep) == len(got.ids)
    return tokenizer.decode(index for index, keep in zip(got.ids, got.keep, strict=True) if keep)


@pytest.mark.parametrize("name", [*TEMPLATES, None])
def test_the_assistants_words_and_its_ends_of_turn_are_kept(llama3: Pair, shared_data: Path, name: str | None) -> None:
    ours = llama3[0]
    ours.chat_template = None if name is None else (shared_data / "templates" / name).read_text("utf-8")
    for messages in [*CONVERSATIONS, SPECIAL_IN_TEXT]:
        said = [message.content.strip() for message in messages if message.role == "assistant"]
        got = encode_chat(ours, messages, add_generation_prompt=False)
        assert kept_text(ours, got) == "".join(f"{text}<|eot_id|>" for text in said)


def test_a_template_that_changes_what_was_said_before_gives_no_mask(learnt: Tokenizer) -> None:
    learnt.chat_template = "{% for m in messages %}{{ m.content if loop.last else '-' }};{% endfor %}"
    got = encode_chat(learnt, CONVERSATIONS[2], add_generation_prompt=False)
    assert got.keep is None
    assert learnt.decode(got.ids) == "-;Hello! How can I help?;"


def test_a_prompt_has_no_mask(learnt: Tokenizer) -> None:
    assert encode_chat(learnt, CONVERSATIONS[2], add_generation_prompt=True).keep is None


def test_a_tokenizer_that_changes_text_gives_ids_but_no_mask(
    learnt: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode_bytes = learnt.decode_bytes
    monkeypatch.setattr(learnt, "decode_bytes", lambda ids: decode_bytes(ids).lower())
    with pytest.raises(BadData, match="ids that hold their bytes"):
        encode_chat(learnt, CONVERSATIONS[2], add_generation_prompt=False)
    assert encode_chat(learnt, CONVERSATIONS[2], add_generation_prompt=True).ids


def test_the_date_is_the_days(learnt: Tokenizer, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls(2031, 2, 3)

    monkeypatch.setattr(chat, "datetime", Clock)
    learnt.chat_template = (shared_data / "templates" / TEMPLATES[1]).read_text("utf-8")
    assert "Today Date: 03 Feb 2031\n" in render_chat(learnt, CONVERSATIONS[0], add_generation_prompt=True)


def test_the_built_in_templates_take_what_their_models_know(learnt: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [Message("system", "S"), Message("user", " U "), Message("assistant", "A"), Message("user", "V")]
    tool = render_chat(learnt, [Message("tool", "1")], add_generation_prompt=False)
    assert tool == f"{BOS}<|start_header_id|>ipython<|end_header_id|>\n\n1<|eot_id|>"
    monkeypatch.setattr(learnt, "specials", {BOS: 265, "<|end_of_text|>": 266})
    learnt.eos_ids = (266,)
    got = encode_chat(learnt, messages, add_generation_prompt=False)
    text = f"{BOS}[INST] <<SYS>>\nS\n<</SYS>>\n\n U [/INST] A <|end_of_text|>{BOS}[INST] V [/INST]"
    assert learnt.decode(got.ids) == text
    assert kept_text(learnt, got) == " A <|end_of_text|>"
    with pytest.raises(BadData, match="must take turns"):
        render_chat(learnt, messages[1:2] * 2, add_generation_prompt=False)
    learnt.eos_ids = ()
    with pytest.raises(BadData, match="chat template: expected"):
        render_chat(learnt, messages, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("template", "error", "words"),
    [
        ("{{ raise_exception('no system messages') }}", BadData, "refuses them: no system messages"),
        ("a\n{% if %}", FormatError, "chat template: line 2: expected Jinja"),
        ("{{ 'a' * 99999999 }}", FormatError, r"chat template: \*: expected at most 4,194,304"),
        ("{{ messages[0].content == '<|eot_id|>' }}", BadData, "the chat template reads it"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(
    learnt: Tokenizer, template: str, error: type[Exception], words: str
) -> None:
    learnt.chat_template = template
    with pytest.raises(error, match=words):
        encode_chat(learnt, [Message("user", "<|eot_id|>")], add_generation_prompt=False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"role": "user"}, "messages: expected a list, got dict"),
        (["hi"], r"messages\[0\]: expected role and content, got str"),
        ([{"role": "user", "content": "a"}, {"role": "user"}], r"messages\[1\]: expected role and content, got 'role'"),
        ([{"role": "user", "content": "a", "name": "b"}], "'name'"),
        ([{"role": "developer", "content": "a"}], r"messages\[0\]\.role: expected one of system, .* got 'developer'"),
        ([{"role": ["user"], "content": "a"}], r"messages\[0\]\.role"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content: expected text, got NoneType"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "content: expected text, got list"),
    ],
)
def test_messages_of_another_kind_are_refused(values: object, words: str) -> None:
    with pytest.raises(BadData, match=words):
        read_messages(values)


def test_messages_are_read_and_none_are_refused(learnt: Tokenizer) -> None:
    assert read_messages(as_json(CONVERSATIONS[3])) == tuple(CONVERSATIONS[3])
    calls: list[Callable[..., object]] = [render_chat, encode_chat]
    for call in calls:
        with pytest.raises(BadData, match="at least one"):
            call(learnt, [], add_generation_prompt=False)


def test_a_template_may_read_the_other_special_names(learnt: Tokenizer) -> None:
    spec, roles = (
        learnt.encoding.json_text(),
        {"bos_token": BOS, "eos_token": "<|end_of_text|>", "pad_token": "<|eot_id|>"},
    )
    template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}"
    named = tokenizer_from_json(spec, roles, chat_template=template)
    said = render_chat(named, turns("", "Hi"), add_generation_prompt=False)
    assert said == f"{BOS}<|end_of_text|><|eot_id|>False"
