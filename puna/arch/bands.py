"""How a local pattern is computed over a row: a causal prefix, whole blocks of queries that all see alike, a shorter last one.

    block t:  queries [p + t b, p + (t + 1) b)   read keys [p + t b - back, p + (t + 1) b)   and the sinks [0, s)

p = w + s of a window (so far everything before is seen), the first block's length of blocks. About n (w + b) pairs are
computed for a window's n w, against n^2 / 2 of full causal attention.
Source: Beltagy et al. 2020, arXiv:2004.05150, section 3 (sliding chunks).
"""

from dataclasses import dataclass

from puna.arch.attention_pattern import BlockPart, Causal, HeadPattern, LayerPattern, SlidingWindow

__all__ = ["Bands", "Piece", "cut_bands", "sees_all"]

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 128  # of a window's queries; docs/findings.md 43


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """So many blocks of queries, each with its keys."""

    blocks: int
    queries: int
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands:
    """Of a row of `tokens`."""

    tokens: int
    prefix: int
    block: int
    back: int
    sinks: int

    @property
    def blocks(self) -> int:
        """Whole ones behind the prefix."""
        return (self.tokens - self.prefix) // self.block

    @property
    def rest(self) -> int:
        """Tokens of the last, shorter one."""
        return (self.tokens - self.prefix) % self.block

    @property
    def end(self) -> int:
        """Where the whole blocks end."""
        return self.tokens - self.rest

    @property
    def first(self) -> Piece:
        """The prefix."""
        return Piece(blocks=1, queries=self.prefix, keys=self.prefix)

    @property
    def body(self) -> Piece:
        """The whole blocks."""
        return Piece(blocks=self.blocks, queries=self.block, keys=self.sinks + self.back + self.block)

    @property
    def last(self) -> Piece:
        """The shorter one."""
        return Piece(blocks=min(1, self.rest), queries=self.rest, keys=self.sinks + self.back + self.rest)


def cut_bands(pattern: HeadPattern, tokens: int) -> Bands:
    """Args: pattern: a local one."""
    if isinstance(pattern, SlidingWindow):
        block, prefix = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, pattern.window // 2)), pattern.window + pattern.sinks
        return Bands(tokens=tokens, prefix=min(tokens, prefix), block=block, back=pattern.window, sinks=pattern.sinks)
    assert isinstance(pattern, BlockPart), f"{pattern} is not local"
    return Bands(tokens=tokens, prefix=min(tokens, pattern.size - pattern.offset), block=pattern.size, back=0, sinks=0)


def sees_all(pattern: LayerPattern, tokens: int) -> bool:
    """Whether in a row of so many tokens a pattern is plain causal attention."""
    return all(part.attended(tokens) == Causal().attended(tokens) for part in pattern.parts)
