"""Records to learn from: what a line of a file says, as messages. Each line's kind is found for itself.

A line of a .jsonl, an object of a .json that holds a list of them (both also as .gz or .zst), a row of a .parquet:

| kind        | a line                                                          | becomes                       |
|-------------|-----------------------------------------------------------------|-------------------------------|
| messages    | {"messages": [{"role", "content"}, ...]}                        | the conversation              |
| pair        | {"prompt", "completion"}                                        | a user's and an answer's turn |
| instruction | {"instruction", "input", "output"}; input may be missing        | the same                      |
| question    | {"question", "answer"}, or two fields that the settings name    | the same                      |
| text        | {"text"}, or any other file of text, whole                      | an answer to nothing          |
"""

import codecs
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from puna.errors import BadData, UsageError
from puna.text.corpus import DocumentStream
from puna.text.reading import inner_suffix, read_blocks, read_lines, read_rows
from puna.tokens.chat import ROLES, Message, read_messages

__all__ = ["Fault", "Kind", "Record", "RecordSettings", "read_records"]

Kind = Literal["messages", "pair", "instruction", "question", "text"]
_Said = tuple[Kind, tuple[Message, ...]]
_T = TypeVar("_T")
_Values = Iterator[tuple[str, Mapping[str, Any] | str]]  # or why there is none

_PAIRS: tuple[tuple[Kind, str, str], ...] = (
    ("pair", "prompt", "completion"),
    ("instruction", "instruction", "output"),
    ("question", "question", "answer"),
)
_PREFERENCES = ("chosen", "rejected")
MAX_LIST_BYTES = 1 << 30  # a list stands in memory whole
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
    """Every line, row and list element that is a record, then every other text, in order; folders hold all of them.

    Errors: BadData for a path that cannot be read; UsageError for a record of preferences; MissingExtra.
    """
    for path in paths:
        files = _files(path)
        taken = set[Path]()
        for file in files:
            values = _values(file, settings, is_named=file == path)
            if values is None:
                continue
            taken.add(file)
            for place, value in values:
                yield _parse(value, str(file), place, settings)
        if taken != set(files):
            yield from _texts(path, taken)


def _files(path: Path) -> list[Path]:
    """A path alone, or every file below a folder that is not hidden."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path))


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _texts(path: Path, taken: Collection[Path]) -> Iterator[Record | Fault]:
    stream = DocumentStream([path], exclude=lambda place: place in taken)
    for document in stream:
        said = (Message("assistant", document.text),)
        yield Record(file=_file_of(document.name), place=document.name, kind="text", messages=said)


def _file_of(name: str) -> str:
    """The file of a text; a long one's pieces are named file#0, file#1 ..."""
    return name if Path(name).exists() else name.rpartition("#")[0]


def _values(file: Path, settings: RecordSettings, *, is_named: bool) -> _Values | None:
    """Place and value of whatever may be a record; None for a file that is a text. Errors: BadData."""
    if file.suffix == ".parquet":
        return _readable(file, ((place, "not UTF-8" if row is None else row) for place, row in read_rows(file)))
    match inner_suffix(file):
        case ".jsonl":
            return _readable(file, ((place, _decode(line)) for place, line in read_lines(file)))
        case ".json":
            return _elements(file, settings, is_named=is_named)
    return None


def _elements(file: Path, settings: RecordSettings, *, is_named: bool) -> _Values | None:
    """Those of a list of objects; below a folder, where a .json may be anything, only of one that holds a record."""
    data = b"".join(_readable(file, _list_blocks(file)))
    if not data:
        return None
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return iter([(str(file), "not JSON")])
    if not values or not all(isinstance(value, dict) for value in values):
        return None
    if not is_named and all(isinstance(_find(value, str(file), settings), str) for value in values):
        return None
    return ((f"{file}[{index}]", value) for index, value in enumerate(values))


def _list_blocks(file: Path) -> Iterator[bytes]:
    """The bytes of a list; nothing where a file begins as anything else. Errors: ValueError for too long a list."""
    total = 0
    for block in read_blocks(file):
        text = block if total else block.removeprefix(codecs.BOM_UTF8)
        if not total and not text.lstrip().startswith(b"["):
            return
        total += len(block)
        if total > MAX_LIST_BYTES:
            raise ValueError(f"a list longer than {MAX_LIST_BYTES:,} bytes: give its records a line each, as .jsonl")
        yield text


def _readable(file: Path, values: Iterable[_T]) -> Iterator[_T]:
    """The values, told of by their file where it cannot be read. Errors: BadData."""
    try:
        yield from values
    except OSError as error:
        raise BadData(f"{file}: {error.strerror or error}", "check the path") from None
    except (EOFError, ValueError) as error:
        raise BadData(f"{file}: {error}", "mend the file, or leave it out") from None


def _decode(line: bytes | None) -> Mapping[str, Any] | str:
    """The object of a line, or why it is none."""
    if line is None:
        return "a line too long"
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return "not JSON"
    return value if isinstance(value, dict) else "not an object"


def _parse(value: Mapping[str, Any] | str, file: str, place: str, settings: RecordSettings) -> Record | Fault:
    found = value if isinstance(value, str) else _find(value, place, settings)
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
