"""Records to learn from: what a line of a file says, as messages. Each line's kind is found for itself.

| kind        | a line of a .jsonl file                                         | becomes                       |
|-------------|-----------------------------------------------------------------|-------------------------------|
| messages    | {"messages": [{"role", "content"}, ...]}                        | the conversation              |
| pair        | {"prompt", "completion"}                                        | a user's and an answer's turn |
| instruction | {"instruction", "input", "output"}; input may be missing        | the same                      |
| question    | {"question", "answer"}, or two fields that the settings name    | the same                      |
| text        | {"text"}, or any other file of text, whole                      | an answer to nothing          |
"""

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from puna.errors import BadData, UsageError
from puna.text.corpus import DocumentStream
from puna.tokens.chat import ROLES, Message, read_messages

__all__ = ["Fault", "Kind", "Record", "RecordSettings", "read_records"]

Kind = Literal["messages", "pair", "instruction", "question", "text"]
_Said = tuple[Kind, tuple[Message, ...]]

_PAIRS: tuple[tuple[Kind, str, str], ...] = (
    ("pair", "prompt", "completion"),
    ("instruction", "instruction", "output"),
    ("question", "question", "answer"),
)
_PREFERENCES = ("chosen", "rejected")
_NO_KIND = "no known kind of record"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSettings:
    """How records are read, and what of them is learned.

    Attributes: loss: the last answer, every answer, or every token; a text is always learned whole.
                chat: whether prompts go through the chat template; None: messages always, instructions and questions
                where the model brings one, pairs never. Texts never do.
                template: the model's own, or the built-in one for a model that brings none.
                date_string: the day that a template writes which asks for one, so that the same records give the same ids
                tomorrow; the default is that of Llama 3.1's own template.
                prompt, completion: names of the two fields of a line, where they are none of the known.
    """

    loss: Literal["completion", "assistant", "all"] = "completion"
    chat: bool | None = None
    template: Literal["model", "builtin"] = "model"
    date_string: str = "26 Jul 2024"
    prompt: str | None = None
    completion: str | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.completion is None) or (self.prompt is not None and not self.prompt):
            raise UsageError(
                f"records: expected prompt and completion, got {self.prompt!r} and {self.completion!r}",
                "name both fields, or neither",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one line says, the file and the place where it stands; the last assistant message is the answer."""

    file: str
    place: str
    kind: Kind
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a line is not used, and where it stands."""

    place: str
    reason: str


def read_records(paths: Sequence[Path], settings: RecordSettings) -> Iterator[Record | Fault]:
    """Every line of .jsonl files that is not blank, and every other text, in order; folders hold both.

    Errors: BadData for a path that cannot be read; UsageError for a record of preferences.
    """
    for path in paths:
        lines = _line_files(path)
        for file in lines:
            for place, line in _lines(file):
                yield _parse(line, str(file), place, settings)
        if not lines or (path.is_dir() and any(_is_other(file, path) for file in path.rglob("*"))):
            yield from _texts(path)


def _line_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path] if path.suffix == ".jsonl" else []
    return sorted(file for file in path.rglob("*.jsonl") if file.is_file() and not _is_hidden(file, path))


def _is_other(file: Path, folder: Path) -> bool:
    return file.is_file() and file.suffix != ".jsonl" and not _is_hidden(file, folder)


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _texts(path: Path) -> Iterator[Record | Fault]:
    stream = DocumentStream([path], exclude=lambda place: place.suffix == ".jsonl")
    for document in stream:
        said = (Message("assistant", document.text),)
        yield Record(file=_file_of(document.name), place=document.name, kind="text", messages=said)
    for number in range(stream.bad_lines):
        known = stream.bad_places[number : number + 1]
        yield Fault(place=known[0].rsplit(": ", 1)[0] if known else str(path), reason="a line without text")


def _file_of(name: str) -> str:
    """The file of a text; a long one's pieces are named file#0, file#1 ..."""
    return name if Path(name).exists() else name.rpartition("#")[0]


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(place, line) of those that are not blank. Only \\n ends a line: JSON text may hold every other separator."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield f"{path}:{number}", text
    except OSError as error:
        raise BadData(f"{path}: {error.strerror}", "check the path") from None


def _parse(line: bytes, file: str, place: str, settings: RecordSettings) -> Record | Fault:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return Fault(place=place, reason="not JSON")
    if not isinstance(value, Mapping):
        return Fault(place=place, reason="not an object")
    found = _find(value, place, settings)
    if isinstance(found, str):
        return Fault(place=place, reason=found)
    kind, messages = found
    try:
        "".join(message.content for message in messages).encode("utf-8")
    except UnicodeEncodeError:
        return Fault(place=place, reason="half a surrogate pair")
    return Record(file=file, place=place, kind=kind, messages=messages)


def _find(value: Mapping[str, Any], place: str, settings: RecordSettings) -> _Said | str:
    """What a line says, or why it is no record: the kind that says most is taken. Errors: UsageError for preferences."""
    named = settings.prompt, settings.completion
    if named[0] in value and named[1] in value:
        return _pair(value, "question", str(named[0]), str(named[1]))
    if any(name in value for name in _PREFERENCES):
        raise UsageError(
            f"{place}: a record with 'chosen' and 'rejected': learning from preferences is not built",
            "--fields prompt,chosen learns the chosen answers alone",
        )
    if "messages" in value:
        return _conversation(value["messages"])
    for kind, prompt, completion in _PAIRS:
        if prompt in value and completion in value:
            return _pair(value, kind, prompt, completion)
    if isinstance(value.get("text"), str):
        return "text", (Message("assistant", value["text"]),)
    return _NO_KIND


def _pair(value: Mapping[str, Any], kind: Kind, prompt: str, completion: str) -> _Said | str:
    given, answer, more = value[prompt], value[completion], value.get("input") if kind == "instruction" else None
    if not (isinstance(given, str) and isinstance(answer, str) and isinstance(more, str | None)):
        return _NO_KIND
    said = f"{given}\n\n{more}" if more is not None and more.strip() else given
    return kind, (Message("user", said), Message("assistant", answer))


def _conversation(values: object) -> _Said | str:
    roles = [value.get("role") for value in values if isinstance(value, dict)] if isinstance(values, list) else []
    if any(isinstance(role, str) and role not in ROLES for role in roles):
        return "unknown role"
    try:
        return "messages", read_messages(values)
    except BadData:
        return "messages that are not a list of role and content"
