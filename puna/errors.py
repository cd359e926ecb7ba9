"""The one exception tree. Every error says what was expected, what was got, and what to do.

PunaError                   exit 1: it failed, or a check answered no
|-- UsageError              exit 2: the command, the recipe or a setting was wrong
|-- BadData                 the text or the records cannot be used
|-- FormatError             a file is not what its format says
|-- MissingExtra            an optional dependency is not installed
|-- DoesNotFit              the plan is larger than the memory
|-- RunLocked               another process works in this run folder
|-- DiskFull                a write failed for lack of space, quota or permission
|-- NonFiniteLoss           a loss, a gradient or a logit became NaN or infinite
|-- CheckpointMismatch      a checkpoint belongs to another model, recipe or schema
|-- ToleranceExceeded       two things that must agree do not
`-- Interrupted             exit 128 + signal: stopped after saving
"""

import difflib
import signal
from collections.abc import Iterable

__all__ = [
    "BadData",
    "CheckpointMismatch",
    "DiskFull",
    "DoesNotFit",
    "FormatError",
    "Interrupted",
    "MissingExtra",
    "NonFiniteLoss",
    "PunaError",
    "RunLocked",
    "ToleranceExceeded",
    "UsageError",
    "unknown_name",
]


class PunaError(Exception):
    """A failure that a person can act on: `message` says what, `hint` says what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def facts(self) -> dict[str, str]:
        """What --json prints under `error`."""
        return {"type": type(self).__name__, "message": self.message, "hint": self.hint}


class UsageError(PunaError):
    """The command, the recipe or a setting was wrong."""

    exit_code = 2


class BadData(PunaError):
    """The text or the records cannot be used."""


class FormatError(PunaError):
    """A file is not what its format says."""

    def __init__(self, path: object, key: str, expected: str, got: object, hint: str = "") -> None:
        super().__init__(f"{path}: {key}: expected {expected}, got {got}", hint)


class MissingExtra(PunaError):
    """An optional dependency is not installed."""

    def __init__(self, job: str, package: str, extra: str) -> None:
        super().__init__(f"{job} needs {package}", f"pip install 'puna[{extra}]'")


class DoesNotFit(PunaError):
    """The plan is larger than the memory."""


class RunLocked(PunaError):
    """Another process works in this run folder."""


class DiskFull(PunaError):
    """A write failed for lack of space, quota or permission; what stood there before is untouched."""


class NonFiniteLoss(PunaError):
    """A loss, a gradient or a logit became NaN or infinite; no update was applied."""


class CheckpointMismatch(PunaError):
    """A checkpoint belongs to another model, recipe or schema."""


class ToleranceExceeded(PunaError):
    """Two things that must agree do not."""


class Interrupted(PunaError):
    """Stopped by a signal, after saving what was learned."""

    def __init__(self, message: str, hint: str = "", signum: int = signal.SIGINT) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signum


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """The error for a name that is none of `choices`; its hint offers the nearest one."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? known: " if near else "known: "
    return UsageError(f"unknown {kind} '{name}'", hint + ", ".join(known))
