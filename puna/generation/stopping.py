"""Stop strings, found in text that arrives in pieces of any size.

Generation stops at the first character that completes a stop string, and the text is cut before the longest stop string
that ends there: so the result does not depend on how the text was split into tokens. Text that may be the beginning of
a stop string is held back until the next characters decide.
"""

from collections.abc import Sequence

from puna.errors import UsageError

__all__ = ["StopScanner"]


class StopScanner:
    """Passes text on until a stop string is complete; `is_found` says that one was."""

    def __init__(self, stop: Sequence[str]) -> None:
        if isinstance(stop, str) or "" in stop:
            raise UsageError(f"stop: expected a list of non-empty strings, got {stop!r}", "leave it out to stop at EOS")
        self.is_found = False
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> str:
        """Args: text: the next characters. Returns: those that can be shown; none once a stop string was found."""
        if self.is_found:
            return ""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.is_found, self._held = True, ""
            _, start = min(found)
            return text[:start]
        border = len(text) - self._undecided(text)
        self._held = text[border:]
        return text[:border]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Characters at the end of `text` that begin a stop string."""
        return max(
            (size for stop in self._stop for size in range(1, len(stop)) if text.endswith(stop[:size])),
            default=0,
        )
