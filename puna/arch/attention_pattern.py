"""Who attends to whom: a function of positions alone.

One object gives the mask (model), the eviction horizon (generation) and the attended count (planning). A layer's heads may
fall into equal parts that see differently, and layers may differ: `of_layer`, then `parts`.

    causal          j <= i                                        n (n + 1) / 2 pairs
    window          ... and i - j < w                             n w - w (w - 1) / 2
    window, sinks   ... and (i - j < w or j < s)                  ... + s (n - w) - s (s - 1) / 2
    blocks          ... and floor(i / b) = floor(j / b)           n (b + 1) / 2 where b divides n

Sources: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3; Child et al. 2019, arXiv:1904.10509 (windows); Xiao et al.
2023, arXiv:2309.17453 (sinks); Chen et al. 2023, arXiv:2309.12307 (shifted blocks).
"""

from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

from puna.errors import UsageError

__all__ = [
    "AttentionPattern",
    "BlockPart",
    "Blocks",
    "Causal",
    "HeadPattern",
    "Hybrid",
    "LayerPattern",
    "SlidingWindow",
]


class _EveryLayer:
    """A pattern that is the same in every layer."""

    __slots__ = ()

    @property
    def has_sink(self) -> bool:
        """Whether heads have a learned logit beside their scores."""
        return False

    def of_layer(self, _: int) -> Self:
        """What a layer sees."""
        return self

    def in_layers(self, layers: int) -> dict[Any, int]:
        """Of so many layers how many see what; without a loop, for a file may claim any number of them."""
        return {self: layers}


@dataclass(frozen=True, slots=True, kw_only=True)
class Causal(_EveryLayer):
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
        """How many positions back a key can still be seen, itself not counted; None: without limit."""
        return None

    @property
    def sees_whole_horizon(self) -> bool:
        """Whether a token sees every key up to there (and every sink), so that a cache which keeps those needs no mask."""
        return True

    def kept(self, tokens: int) -> int:
        """How many of so many tokens' keys a later one may still see."""
        return tokens

    @property
    def parts(self) -> "tuple[HeadPattern, ...]":
        """What each equal share of a layer's heads sees, in their order."""
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindow(_EveryLayer):
    """Every token sees itself and the `window` - 1 before it, and the first `sinks` of all.

    learnable_sink: each head also has a logit of its own beside the scores, whose value is zero: a place for attention that
    wants to go nowhere. A window as wide as the context is full attention.
    """

    window: int
    sinks: int = 0
    learnable_sink: bool = False
    kind: Literal["sliding_window"] = "sliding_window"

    def __post_init__(self) -> None:
        _check_size("window", self.window, at_least=1)
        _check_size("sinks", self.sinks, at_least=0)

    def allows(self, query: Any, key: Any) -> Any:
        """As Causal.allows."""
        return (key <= query) & ((query - key < self.window) | (key < self.sinks))

    def attended(self, tokens: int) -> int:
        """As Causal.attended."""
        full = min(tokens, self.window + self.sinks)  # so many rows see all before them
        return full * (full + 1) // 2 + (tokens - full) * (self.window + self.sinks)

    @property
    def has_sink(self) -> bool:
        """Whether heads have a learned logit beside their scores."""
        return self.learnable_sink

    @property
    def horizon(self) -> int:
        """As Causal.horizon; sinks are seen from anywhere."""
        return self.window - 1

    @property
    def sees_whole_horizon(self) -> bool:
        """As Causal.sees_whole_horizon."""
        return True

    def kept(self, tokens: int) -> int:
        """As Causal.kept."""
        return min(tokens, self.window + self.sinks)

    @property
    def parts(self) -> "tuple[HeadPattern, ...]":
        """As Causal.parts."""
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPart:
    """Heads that see the tokens of their own block, up to themselves; blocks begin at multiples of `size`, less `offset`."""

    size: int
    offset: int = 0

    def allows(self, query: Any, key: Any) -> Any:
        """As Causal.allows."""
        return (key <= query) & ((query + self.offset) // self.size == (key + self.offset) // self.size)

    def attended(self, tokens: int) -> int:
        """As Causal.attended."""
        first = min(tokens, self.size - self.offset)
        whole, last = divmod(tokens - first, self.size)
        return sum(count * (count + 1) // 2 for count in (first, last)) + whole * self.size * (self.size + 1) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks(_EveryLayer):
    """Every token sees its own block of `size` tokens up to itself; the last block may be shorter.

    Nothing crosses blocks at any depth, unless half of the heads are `shifted` by half a block (their first block is half as
    long: a cyclic roll would set the last tokens beside the first).
    """

    size: int
    shifted: bool = False
    kind: Literal["blocks"] = "blocks"

    def __post_init__(self) -> None:
        _check_size("size", self.size, at_least=1 + self.shifted)

    @property
    def horizon(self) -> int:
        """As Causal.horizon."""
        return self.size - 1

    @property
    def sees_whole_horizon(self) -> bool:
        """As Causal.sees_whole_horizon: not beyond the beginning of a block."""
        return False

    def kept(self, tokens: int) -> int:
        """As Causal.kept."""
        return min(tokens, self.size)

    @property
    def parts(self) -> "tuple[HeadPattern, ...]":
        """As Causal.parts."""
        plain = BlockPart(size=self.size)
        return (plain, BlockPart(size=self.size, offset=self.size // 2)) if self.shifted else (plain,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hybrid:
    """`windows` layers of a sliding window, then one of full attention, and so on from the first layer."""

    window: int
    windows: int
    sinks: int = 0
    learnable_sink: bool = False
    kind: Literal["hybrid"] = "hybrid"

    def __post_init__(self) -> None:
        _check_size("windows", self.windows, at_least=1)
        self.of_layer(0)

    def of_layer(self, layer: int) -> "LayerPattern":
        """What a layer sees."""
        if layer % (self.windows + 1) == self.windows:
            return Causal()
        return SlidingWindow(window=self.window, sinks=self.sinks, learnable_sink=self.learnable_sink)

    def in_layers(self, layers: int) -> "dict[LayerPattern, int]":
        """As of a pattern that is the same in every layer."""
        full = layers // (self.windows + 1)
        counts: dict[LayerPattern, int] = {self.of_layer(0): layers - full, Causal(): full}
        return {pattern: count for pattern, count in counts.items() if count}


HeadPattern: TypeAlias = Causal | SlidingWindow | BlockPart
LayerPattern: TypeAlias = Causal | SlidingWindow | Blocks
AttentionPattern: TypeAlias = Causal | SlidingWindow | Blocks | Hybrid


def _check_size(name: str, value: int, at_least: int) -> None:
    if value < at_least:
        raise UsageError(f"{name}: expected at least {at_least}, got {value}", "it counts tokens, or layers")
