"""Who attends to whom: a function of positions alone.

One object gives the mask (model), the eviction horizon (generation) and the attended count (planning).
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3.
"""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["AttentionPattern", "Causal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Causal:
    """Every token sees itself and all before it."""

    kind: Literal["causal"] = "causal"

    def allows(self, query: Any, key: Any) -> Any:
        """Whether a query position sees a key position; ints or tensors of positions alike."""
        return key <= query

    def attended(self, tokens: int) -> int:
        """Visible (query, key) pairs in a sequence of `tokens`."""
        return tokens * (tokens + 1) // 2

    @property
    def horizon(self) -> int | None:
        """How many positions back a key can still be seen; None: without limit."""
        return None


AttentionPattern = Causal
