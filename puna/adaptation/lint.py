"""What is wrong with records, found before the first step: a run that learns nothing, or the wrong ids, looks like any other.

A fault of one record drops it, and is counted with places. More than one record in a hundred, or a fault of the whole set,
stops the run; told to go on anyway it learns from what it can. Records that only look wrong (BOS or the template's marks
in the text) are then used, and counted as such.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from puna.adaptation.encoding import EncodedRecord, chat_template_of, encode_record
from puna.adaptation.records import Fault, Record, RecordSettings
from puna.errors import BadData
from puna.tokens.tokenizer import Tokenizer

__all__ = ["LintRules", "Linted", "RecordCounts", "find_fault", "lint_records", "lint_rules", "refusal"]

MAX_BAD_SHARE = 0.01
EXAMPLES = 3  # of each kind of fault
BOS_DOUBLED, TEMPLATE_DOUBLED, NO_END = "BOS doubled", "template doubled", "no end is learned"
_LOOKS_WRONG = (BOS_DOUBLED, TEMPLATE_DOUBLED)
_LITERALS = (
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<|im_start|>",
    "<|im_end|>",
)  # marks of templates that may be no special ids
_COMMON = ("<unk>", "<pad>")  # names of special tokens that texts may well hold anywhere


@dataclass(frozen=True, slots=True, kw_only=True)
class LintRules:
    """What a record of a model must keep to.

    Attributes: bos_name: as a text would begin that was marked before. marked: what a text looks like that was put through
                a template before; marked_chat: the same, for a record that the template is put around here.
    """

    seq: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    bos_name: str | None
    marked: re.Pattern[str]
    marked_chat: re.Pattern[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCounts:
    """How many records are used and dropped, why, and where.

    Attributes: reasons: of those dropped. doubts: of those that are used although they look wrong. examples: the first
                places of each of both.
    """

    used: int
    dropped: int
    reasons: dict[str, int]
    doubts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linted:
    """What can be learned, what cannot, and the longest record that a row is too short for (0: none)."""

    records: list[EncodedRecord]
    counts: RecordCounts
    longest_tokens: int


def lint_rules(tokenizer: Tokenizer, settings: RecordSettings, seq: int) -> LintRules:
    """The rules for a model's records in rows of `seq`. Errors: as chat_template_of."""
    names = {index: name for name, index in tokenizer.specials.items()}
    template = chat_template_of(tokenizer, settings)
    specials = [name for name in tokenizer.specials if name not in _COMMON]
    literals = [mark for mark in _LITERALS if template is not None and mark in template]
    return LintRules(
        seq=seq,
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
        bos_name=None if tokenizer.bos_id is None else names.get(tokenizer.bos_id),
        marked=_marked(specials),
        marked_chat=_marked(specials + literals),
    )


def find_fault(record: Record, encoded: EncodedRecord, rules: LintRules) -> str | None:
    """Why a record should not be learned from; None: nothing is wrong with it."""
    texts = [message.content for message in record.messages]
    answers = [message.content for message in record.messages if message.role == "assistant"]
    if not answers or (record.kind == "text" and not answers[0].strip()):
        return "nothing to learn"
    if not all(answer.strip() for answer in answers):
        return "empty answer"
    if not encoded.learn[1:].any():
        return "nothing to learn"
    if record.kind != "text" and len(encoded.ids) > rules.seq + 1:
        return _too_long(rules.seq)
    if _begins_twice(texts, encoded, rules):
        return BOS_DOUBLED
    marked = rules.marked_chat if encoded.is_chat else rules.marked
    return TEMPLATE_DOUBLED if any(marked.search(text) for text in texts) else None


def lint_records(
    records: Iterable[Record | Fault], tokenizer: Tokenizer, settings: RecordSettings, seq: int, *, anyway: bool = False
) -> Linted:
    """Encode records and sort out those that cannot be learned from; `anyway` keeps those that only look wrong.

    Errors: UsageError for a record that needs a chat template that is not there; FormatError for a broken one.
    """
    rules = lint_rules(tokenizer, settings, seq)
    used: list[EncodedRecord] = []
    reasons, doubts, longest = Counter[str](), Counter[str](), 0
    examples: dict[str, list[str]] = {}
    for record in records:
        encoded, reason = _encode(record, tokenizer, settings, rules)
        is_used = encoded is not None and (reason is None or (anyway and reason in _LOOKS_WRONG))
        if encoded is not None and is_used:
            used.append(encoded)
        if reason is not None:
            (doubts if is_used else reasons).update([reason])
            places = examples.setdefault(reason, [])
            places += [record.place][: EXAMPLES - len(places)]
        if encoded is not None and reason == _too_long(seq):
            longest = max(longest, len(encoded.ids) - 1)
    if used and rules.eos_ids and not any(np.isin(each.ids[each.learn], rules.eos_ids).any() for each in used):
        doubts[NO_END], examples[NO_END] = len(used), [each.place for each in used[:EXAMPLES]]
    counts = RecordCounts(
        used=len(used), dropped=reasons.total(), reasons=dict(reasons), doubts=dict(doubts), examples=examples
    )
    return Linted(records=used, counts=counts, longest_tokens=longest)


def refusal(linted: Linted) -> BadData | None:
    """Why these records should not be learned from; None: the lint is content. With no record left nothing helps."""
    counts = linted.counts
    everything = counts.used + counts.dropped
    if everything == 0:
        return BadData("no record at all", _KINDS)
    if most := next((reason for reason in _LOOKS_WRONG if 2 * counts.reasons.get(reason, 0) > everything), None):
        return BadData(f"{_say(counts, most, counts.reasons[most])} of {everything}", _HINTS[most])
    if NO_END in counts.doubts:
        return BadData(
            f"{NO_END} in any of {counts.used} records: answers would never stop",
            "mark the end of turn in the template's generation block, or name it as eos_token; --anyway goes on",
        )
    if counts.used == 0 or counts.dropped > MAX_BAD_SHARE * everything:
        reasons = sorted(counts.reasons, key=lambda reason: -counts.reasons[reason])
        words = "; ".join(_say(counts, reason, counts.reasons[reason]) for reason in reasons)
        return BadData(f"{counts.dropped} of {everything} records cannot be used: {words}", _hint(linted, reasons[0]))
    return None


_KINDS = "a line is {messages}, {prompt, completion}, {instruction, output}, {question, answer} or {text}"
_HINTS = {
    BOS_DOUBLED: "take BOS out of the texts, or out of the template; --anyway learns them as they are",
    TEMPLATE_DOUBLED: "give plain messages: the template is put around them here; --anyway learns them as they are",
}


def _encode(
    record: Record | Fault, tokenizer: Tokenizer, settings: RecordSettings, rules: LintRules
) -> tuple[EncodedRecord | None, str | None]:
    """A record's ids where there are any, and what is wrong with it."""
    if isinstance(record, Fault):
        return None, record.reason
    encoded = encode_record(record, tokenizer, settings)
    if isinstance(encoded, Fault):
        return None, encoded.reason
    return encoded, find_fault(record, encoded, rules)


def _marked(marks: list[str]) -> re.Pattern[str]:
    """A mark at the edge of a text, or next to another one; a text about marks holds them in between."""
    if not marks:
        return re.compile(r"(?!)")
    one = f"(?:{'|'.join(map(re.escape, marks))})"
    return re.compile(rf"\A\s*{one}|{one}\s*(?:{one}|\Z)")


def _too_long(seq: int) -> str:
    return f"longer than a row of {seq}"


def _begins_twice(texts: list[str], encoded: EncodedRecord, rules: LintRules) -> bool:
    is_bos = encoded.ids == (-1 if rules.bos_id is None else rules.bos_id)
    if (is_bos[1:] & is_bos[:-1]).any():
        return True
    return rules.bos_name is not None and any(text.lstrip().startswith(rules.bos_name) for text in texts)


def _say(counts: RecordCounts, reason: str, count: int) -> str:
    return f"{reason}: {count} ({', '.join(counts.examples[reason])})"


def _hint(linted: Linted, reason: str) -> str:
    if reason.startswith("longer"):
        return f"raise --seq: the longest record needs {linted.longest_tokens}; --anyway leaves the long ones out"
    return f"mend them, or leave them out with --anyway; {_KINDS}"
