"""Records to ids, and which of these are learned: by the chat template, or as plain text.

Plain: BOS, the prompt, the answer, the end of text. A question and an instruction end in a line's end there; a prompt and
its completion meet as they stand.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from puna.adaptation.records import Fault, Kind, Record, RecordSettings
from puna.errors import BadData, FormatError, UsageError
from puna.tokens.chat import LLAMA3_NAMES, builtin_template, encode_chat
from puna.tokens.tokenizer import Tokenizer

__all__ = ["EncodedRecord", "chat_template_of", "cut_record", "encode_record"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedRecord:
    """The ids of a record, and of each whether it is learned as the target of those before; the first never is.

    prompt_tokens: how many ids stand before the last answer; 0 for a text, and where the template does not say.
    """

    file: str
    place: str
    kind: Kind
    is_chat: bool
    ids: NDArray[np.int32]
    learn: NDArray[np.bool_]
    prompt_tokens: int = 0


def encode_record(record: Record, tokenizer: Tokenizer, settings: RecordSettings) -> EncodedRecord | Fault:
    """The ids of a record, however long, and which are learned.

    Errors: UsageError for a record that needs a chat template that is not there; FormatError for a broken one.
    """
    is_chat = _is_chat(record, tokenizer, settings)
    if is_chat:
        encoded = _encode_chat(record, tokenizer, settings)
        if isinstance(encoded, str):
            return Fault(place=record.place, reason=encoded)
        ids, learn, prompt_tokens = encoded
    else:
        ids, learn, prompt_tokens = _encode_plain(record, tokenizer, settings)
    learn = learn & (np.arange(len(ids)) > 0)
    return EncodedRecord(
        file=record.file, place=record.place, kind=record.kind, is_chat=is_chat, ids=ids, learn=learn,
        prompt_tokens=prompt_tokens,
    )  # fmt: skip


def cut_record(record: EncodedRecord, seq: int) -> Iterator[EncodedRecord]:
    """Pieces of at most seq + 1 ids that overlap by one, so that every learned id is a target once."""
    for begin in range(0, len(record.ids) - 1, seq):
        part = slice(begin, begin + seq + 1)
        yield replace(record, ids=record.ids[part], learn=record.learn[part], prompt_tokens=0)


def chat_template_of(tokenizer: Tokenizer, settings: RecordSettings) -> str | None:
    """The template that records go through, None where there is none.

    Errors: UsageError where the built-in one is asked for beside the model's own; BadData where none can be built.
    """
    if settings.template == "model":
        return tokenizer.chat_template
    if tokenizer.chat_template is not None:
        raise UsageError(
            "records.template: expected model, got builtin: the model brings a chat template of its own",
            "leave it out: answers are asked for with the model's own",
        )
    return builtin_template(tokenizer)


def _is_chat(record: Record, tokenizer: Tokenizer, settings: RecordSettings) -> bool:
    has_template = chat_template_of(tokenizer, settings) is not None
    if record.kind == "text":
        return False
    if record.kind == "messages" and settings.chat is False:
        raise UsageError(
            f"{record.place}: records.chat: expected true for messages, got false",
            "leave it out: only the chat template says what stands between two turns",
        )
    is_chat = settings.chat
    if is_chat is None:
        is_chat = record.kind == "messages" or (record.kind != "pair" and has_template)
    if is_chat and not has_template:
        raise UsageError(f"{record.place}: {record.kind}: the model brings no chat template", _offer(tokenizer))
    return is_chat


def _offer(tokenizer: Tokenizer) -> str:
    try:
        builtin_template(tokenizer)
    except BadData as error:
        return error.hint
    name = "Llama 3's headers" if tokenizer.specials.keys() >= set(LLAMA3_NAMES) else "Llama 2's [INST]"
    return f"--set records.template=builtin takes {name}; or add chat_template.jinja to the model's folder"


def _encode_plain(
    record: Record, tokenizer: Tokenizer, settings: RecordSettings
) -> tuple[NDArray[np.int32], NDArray[np.bool_], int]:
    *given, answer = (message.content for message in record.messages)
    end = "" if record.kind in ("text", "pair") else "\n"
    prompt = tokenizer.encode("".join(given) + end, bos=True)
    ids = [*prompt, *tokenizer.encode(answer), *tokenizer.eos_ids[:1]]
    begin = 0 if settings.loss == "all" else len(prompt)
    prompt_tokens = 0 if record.kind == "text" else len(prompt)
    return np.array(ids, dtype=np.int32), np.arange(len(ids)) >= begin, prompt_tokens


def _encode_chat(
    record: Record, tokenizer: Tokenizer, settings: RecordSettings
) -> tuple[NDArray[np.int32], NDArray[np.bool_], int] | str:
    try:
        chat = encode_chat(tokenizer, record.messages, add_generation_prompt=False, date_string=settings.date_string)
        keep = None if chat.keep is None else np.array(chat.keep, dtype=bool)
        answer = None if keep is None else _last_run(keep)
        if settings.loss == "all":
            keep = np.ones(len(chat.ids), dtype=bool)
        elif settings.loss == "completion":
            keep = answer = _after_prompt(record, tokenizer, settings, chat.ids) if answer is None else answer
    except BadData:
        return "refused by the chat template"
    if keep is None:
        return "no mask from the chat template"
    is_last = record.messages[-1].role == "assistant"
    prompt_tokens = 0 if answer is None or not is_last else int(np.argmax(answer))
    return np.array(chat.ids, dtype=np.int32), keep, prompt_tokens


def _last_run(keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The last unbroken run alone: between two answers stands at least a header."""
    kept = np.flatnonzero(keep)
    if len(kept) == 0:
        return keep
    breaks = np.flatnonzero(np.diff(kept) > 1)
    first = kept[breaks[-1] + 1] if len(breaks) else kept[0]
    return keep & (np.arange(len(keep)) >= first)


def _after_prompt(
    record: Record, tokenizer: Tokenizer, settings: RecordSettings, ids: list[int]
) -> NDArray[np.bool_] | None:
    """Where a template gives no mask, as one that drops earlier reasoning: what a last answer adds to its prompt's ids."""
    if record.messages[-1].role != "assistant" or len(record.messages) == 1:
        return None
    try:
        prompt = encode_chat(
            tokenizer, record.messages[:-1], add_generation_prompt=True, date_string=settings.date_string
        ).ids
    except FormatError:  # the template takes no such conversation
        return None
    return np.arange(len(ids)) >= len(prompt) if ids[: len(prompt)] == prompt else None
