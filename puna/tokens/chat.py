"""Messages to ids, and which of these an assistant wrote.

A conversation becomes one text through the tokenizer's chat template, or through a built-in one: Llama 3's headers where
the tokenizer has their special tokens, else Llama 2's [INST]. The text is cut at the names of special tokens, which become
their ids; what lies between is encoded as ordinary text. BOS stands where the template writes it.

Text of messages never becomes a special id. Where a message holds a special token's name, or a piece of one at its edge,
the conversation is rendered again with the first and last characters of such names replaced, in the messages, by
characters that occur nowhere; the text is cut, and they are put back. Nothing else may differ between the two texts.
"""

import atexit
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import resources
from itertools import accumulate, pairwise
from typing import Any

from puna.child import Child, ChildFailed
from puna.errors import BadData, FormatError
from puna.tokens import chat_template
from puna.tokens.tokenizer import Tokenizer

__all__ = ["ROLES", "ChatIds", "Message", "builtin_template", "encode_chat", "read_messages", "render_chat"]

ROLES = ("system", "user", "assistant", "tool")
SECONDS, MEMORY_BYTES = 2.0, 128 << 20  # for one rendering of a foreign template
LLAMA3_NAMES = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

Span = tuple[int, int]  # [begin, end) in characters


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and the text. Errors: BadData for another role, and for content that is no text."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise BadData(f"role: expected one of {', '.join(ROLES)}, got {self.role!r}", "rename the role")
        if type(self.content) is not str:
            got = type(self.content).__name__
            raise BadData(f"content: expected text, got {got}", "images, audio and tool calls are not read")


@dataclass(frozen=True, slots=True)
class ChatIds:
    """A conversation's ids; keep: whether each is the assistant's own (its end of turn included), or None if unknown."""

    ids: list[int]
    keep: list[bool] | None


def read_messages(values: object) -> tuple[Message, ...]:
    """Messages from decoded JSON: a list of {"role", "content"}. Errors: BadData naming the message."""
    if not isinstance(values, list):
        raise BadData(
            f"messages: expected a list, got {type(values).__name__}", 'write [{"role": ..., "content": ...}]'
        )
    messages = []
    for number, value in enumerate(values):
        if not isinstance(value, dict) or value.keys() != {"role", "content"}:
            got = ", ".join(map(repr, value)) if isinstance(value, dict) else type(value).__name__
            raise BadData(f"messages[{number}]: expected role and content, got {got}", "leave other keys out")
        try:
            messages.append(Message(**value))
        except BadData as error:
            raise BadData(f"messages[{number}].{error.message}", error.hint) from None
    return tuple(messages)


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool, **arguments: object
) -> str:
    """The text of a conversation, as transformers' apply_chat_template(tokenize=False) gives it.

    Args:    add_generation_prompt: end with the header of an answer. arguments: what else the template reads
             (date_string, tools, ...), as JSON.
    Errors:  BadData for no messages, and with the template's own words where it refuses these; FormatError for a template
             that is broken or exceeds a cap.
    """
    return _conversation(tokenizer, messages, arguments).render(add_generation_prompt)[0]


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool, **arguments: object
) -> ChatIds:
    """The ids of a conversation, and which of them the assistant is to learn.

    `keep` comes from the template's `{% generation %}` blocks; without them, from the texts of the shorter
    conversations, each of which must begin the whole. It is None where one does not, and for a prompt
    (add_generation_prompt), of which nothing is learned. Arguments and errors as in render_chat.
    """
    chat = _conversation(tokenizer, messages, arguments)
    text, spans = chat.render(add_generation_prompt)
    if add_generation_prompt:
        spans = None
    elif spans is None:
        spans = _answers(chat, text)
    ids: list[int] = []
    keep: list[bool] = []
    begin = 0
    for piece, special in _pieces(tokenizer.specials, chat, add_generation_prompt, text):
        piece_ids = tokenizer.encode(piece) if special is None else [special]
        ids += piece_ids
        if spans is not None:
            keep += _overlaps(tokenizer, piece_ids, piece, [(first - begin, last - begin) for first, last in spans])
        begin += len(piece)
    return ChatIds(ids, None if spans is None else keep)


def builtin_template(tokenizer: Tokenizer) -> str:
    """The template for a tokenizer that brings none. Errors: BadData where its special tokens allow none."""
    if tokenizer.specials.keys() >= set(LLAMA3_NAMES):
        return _LLAMA3
    if tokenizer.bos_id is not None and tokenizer.eos_ids:
        return _LLAMA2
    raise BadData(
        "chat template: expected one with the tokenizer, or special tokens to build on, got neither",
        "add chat_template.jinja to the model's folder, or give a plain prompt",
    )


_LLAMA3, _LLAMA2 = (
    (resources.files(__package__) / "templates" / f"{name}.jinja").read_text("utf-8") for name in ("llama3", "llama2")
)
_WORKER = Child("puna.tokens.template_worker", memory_bytes=MEMORY_BYTES, cpu_seconds=86_400)  # starts when first asked
atexit.register(_WORKER.close)
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conversation:
    """What a rendering needs: the template, the tokenizer's names for it (bos_token, ...), and what was said."""

    template: str
    names: dict[str, str]
    arguments: dict[str, Any]
    messages: list[dict[str, str]]
    now: str

    def render(self, add_generation_prompt: bool) -> tuple[str, list[Span] | None]:
        """The text, and the spans of its generation blocks (None: the template has none)."""
        own = {"messages": self.messages, "add_generation_prompt": add_generation_prompt}
        request = {"template": self.template, "variables": self.names | self.arguments | own, "now": self.now}
        if self.template in (_LLAMA3, _LLAMA2):
            answer = chat_template.render(request)
        else:
            answer = _ask_worker(request)
        if "refusal" in answer:
            raise BadData(f"messages: the chat template refuses them: {answer['refusal']}", "change the conversation")
        if "fault" in answer:
            raise FormatError("chat template", *answer["fault"])
        return answer["text"], answer["spans"]


def _conversation(tokenizer: Tokenizer, messages: Sequence[Message], arguments: dict[str, object]) -> _Conversation:
    if not messages:
        raise BadData("messages: expected at least one, got none", "begin with what the user says")
    return _Conversation(
        template=builtin_template(tokenizer) if tokenizer.chat_template is None else tokenizer.chat_template,
        names=_special_names(tokenizer),
        arguments={"tools": None, "documents": None, **arguments},
        messages=[{"role": message.role, "content": message.content} for message in messages],
        now=datetime.now().isoformat(),
    )


def _ask_worker(request: dict[str, Any]) -> dict[str, Any]:
    try:
        with _ONE_AT_A_TIME:
            return _WORKER.ask(request, SECONDS)
    except ChildFailed as error:
        expected = f"an end within {SECONDS:g} seconds and {MEMORY_BYTES >> 20} MiB"
        raise FormatError("chat template", "rendering", expected, error.reason, "use another template") from None


def _answers(chat: _Conversation, text: str) -> list[Span] | None:
    """Where each answer stands: from the end of its prompt to the end of the conversation that it ends."""
    spans = []
    for number, message in enumerate(chat.messages):
        if message["role"] == "assistant":
            try:
                prompt, _ = replace(chat, messages=chat.messages[:number]).render(add_generation_prompt=True)
                whole, _ = replace(chat, messages=chat.messages[: number + 1]).render(add_generation_prompt=False)
            except (BadData, FormatError):  # the template takes no such conversation
                return None
            if not (text.startswith(whole) and whole.startswith(prompt)):
                return None
            spans.append((len(prompt), len(whole)))
    return spans


def _pieces(
    specials: dict[str, int], chat: _Conversation, add_generation_prompt: bool, text: str
) -> Iterator[tuple[str, int | None]]:
    """The text cut into the names of special tokens that the template wrote, with their ids, and what lies between."""
    edges = sorted({edge for name in specials for edge in (name[0], name[-1])})
    unused = (mark for mark in map(chr, range(sys.maxunicode, 0, -1)) if mark not in text)
    marks = {ord(edge): mark for edge, mark in zip(edges, unused, strict=False)}
    restore = {ord(mark): edge for edge, mark in marks.items()}
    marked = _mark(chat, list(specials), marks)
    cut = text if marked == chat else marked.render(add_generation_prompt)[0]
    if cut.translate(restore) != text:
        raise BadData(
            "messages: the name of a special token stands in them, and the chat template reads it", "take it out"
        )
    names = sorted((name for name in specials if name in cut), key=len, reverse=True)
    for part in re.split(f"({'|'.join(map(re.escape, names))})", cut) if names else (cut,):
        if part:
            yield part.translate(restore), specials.get(part)


def _mark(chat: _Conversation, names: list[str], marks: dict[int, str]) -> _Conversation:
    """The conversation with the edges of names replaced in each text that holds a name, or a piece of one at its edge."""
    longest = max(map(len, names), default=0)

    def is_near(text: str) -> bool:
        begin, end = text.lstrip()[:longest], text.rstrip()[-longest:]
        heads = tuple(end[i:] for i in range(len(end)) if ord(end[i]) in marks)
        tails = tuple(begin[: i + 1] for i in range(len(begin)) if ord(begin[i]) in marks)
        return any(name in text or name.startswith(heads) or name.endswith(tails) for name in names)

    def mark(value: Any) -> Any:
        if isinstance(value, dict):
            return {mark(key): mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [mark(item) for item in value]
        return value.translate(marks) if isinstance(value, str) and is_near(value) else value

    messages = [message | {"content": mark(message["content"])} for message in chat.messages]
    return replace(chat, messages=messages, arguments=mark(chat.arguments))


def _overlaps(tokenizer: Tokenizer, ids: list[int], text: str, spans: list[Span]) -> list[bool]:
    """Whether each token holds a byte of a span of the text that the ids encode.

    Errors: BadData where the ids' bytes are not the text's, so that no token has a place in it.
    """
    pieces = [tokenizer.decode_bytes([index]) for index in ids]
    added = sum(map(len, pieces)) - len(text.encode())  # 1: the space that SentencePiece puts before a text
    if added not in (0, 1) or b"".join(pieces)[added:] != text.encode():
        raise BadData(
            "messages: expected ids that hold their bytes, got others", "this tokenizer changes text; it gives no mask"
        )
    bytes_before = [(len(text[: max(first, 0)].encode()), len(text[: max(last, 0)].encode())) for first, last in spans]
    ends = [end - added for end in accumulate(map(len, pieces))]
    return [
        any(first < end and begin < last for first, last in bytes_before) for begin, end in pairwise([-added, *ends])
    ]


def _special_names(tokenizer: Tokenizer) -> dict[str, str]:
    names = {index: name for name, index in tokenizer.specials.items()}
    ids = {"bos_token": tokenizer.bos_id, "eos_token": next(iter(tokenizer.eos_ids), None)}
    ids |= {role: tokenizer.named_id(role) for role in ("unk_token", "pad_token")}
    return {role: names[index] for role, index in ids.items() if index in names}
