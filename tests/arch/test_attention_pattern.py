"""A pattern's mask, its count and its horizon must be about the same set of pairs. math.md 1.4."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.arch.attention_pattern import (
    AttentionPattern,
    BlockPart,
    Blocks,
    Causal,
    HeadPattern,
    Hybrid,
    SlidingWindow,
)
from puna.errors import UsageError

sizes = st.integers(1, 40)
heads = st.one_of(
    st.just(Causal()),
    st.builds(SlidingWindow, window=sizes, sinks=st.integers(0, 20)),
    st.builds(BlockPart, size=sizes),
    sizes.filter(lambda size: size > 1).map(lambda size: BlockPart(size=size, offset=size // 2)),
)


def visible(pattern: HeadPattern, tokens: int) -> torch.Tensor:
    index = torch.arange(tokens)
    return pattern.allows(index[:, None], index[None, :])


@given(heads, st.integers(1, 100))
def test_the_count_of_visible_pairs_equals_the_mask(pattern: HeadPattern, tokens: int) -> None:
    assert pattern.attended(tokens) == int(visible(pattern, tokens).sum())


@given(heads)
def test_a_query_sees_itself_and_nothing_later(pattern: HeadPattern) -> None:
    seen = visible(pattern, 60)
    assert seen.diagonal().all()
    assert not seen.triu(1).any()


def test_the_counts_are_the_formulas() -> None:
    n, w, s, b = 8192, 256, 4, 512
    assert Causal().attended(n) == n * (n + 1) // 2
    pairs = n * w - w * (w - 1) // 2
    assert SlidingWindow(window=w).attended(n) == pairs
    assert SlidingWindow(window=w, sinks=s).attended(n) == pairs + s * (n - w) - s * (s - 1) // 2
    assert BlockPart(size=b).attended(n) == n * (b + 1) // 2
    assert BlockPart(size=b, offset=b // 2).attended(n) == n * (b + 1) // 2 - (b // 2) ** 2


@pytest.mark.parametrize(
    "pattern", [SlidingWindow(window=5), Blocks(size=5), Blocks(size=6, shifted=True)], ids=lambda pattern: pattern.kind
)
def test_nothing_further_back_than_the_horizon_is_seen_and_something_there_is(
    pattern: SlidingWindow | Blocks,
) -> None:
    index = torch.arange(50)
    distance = index[:, None] - index[None, :]
    furthest = max(int(distance[visible(part, 50)].max()) for part in pattern.parts)
    assert furthest == pattern.horizon
    assert Causal().horizon is None


@pytest.mark.parametrize("window", [12, 13, 40])
def test_a_window_and_blocks_as_wide_as_the_context_are_full_attention(window: int) -> None:
    full = visible(Causal(), 12)
    assert torch.equal(visible(SlidingWindow(window=window), 12), full)
    assert torch.equal(visible(SlidingWindow(window=window - 8, sinks=8), 12), full)
    assert torch.equal(visible(BlockPart(size=window), 12), full)


def test_shifted_heads_tie_neighbouring_blocks_together_but_never_the_last_to_the_first() -> None:
    plain, shifted = Blocks(size=4, shifted=True).parts
    assert [key for key in range(12) if plain.allows(5, key)] == [4, 5]
    assert [key for key in range(12) if shifted.allows(5, key)] == [2, 3, 4, 5]
    assert [key for key in range(12) if shifted.allows(11, key)] == [10, 11]
    assert [key for key in range(12) if shifted.allows(1, key)] == [0, 1]


def test_layers_of_a_hybrid_take_turns_and_those_of_others_do_not() -> None:
    hybrid, window = Hybrid(window=8, windows=3, sinks=2), SlidingWindow(window=8, sinks=2)
    assert [hybrid.of_layer(layer) for layer in range(8)] == [window, window, window, Causal()] * 2
    assert Hybrid(window=8, windows=1).of_layer(1) == Causal()
    assert [window.of_layer(layer) for layer in range(2)] == [window, window]


@pytest.mark.parametrize("layers", [1, 2, 7, 8, 33])
def test_layers_are_counted_without_a_loop(layers: int) -> None:
    for pattern in (Hybrid(window=8, windows=1), Hybrid(window=8, windows=6), Blocks(size=4), Causal()):
        seen = [pattern.of_layer(layer) for layer in range(layers)]
        assert pattern.in_layers(layers) == {each: seen.count(each) for each in seen}
    assert sum(Hybrid(window=8, windows=1).in_layers(2**62).values()) == 2**62


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: SlidingWindow(window=0), "window: expected at least 1, got 0"),
        (lambda: SlidingWindow(window=4, sinks=-1), "sinks: expected at least 0, got -1"),
        (lambda: Blocks(size=0), "size: expected at least 1, got 0"),
        (lambda: Blocks(size=1, shifted=True), "size: expected at least 2, got 1"),
        (lambda: Hybrid(window=0, windows=2), "window: expected at least 1, got 0"),
        (lambda: Hybrid(window=8, windows=0), "windows: expected at least 1, got 0"),
    ],
)
def test_sizes_below_their_least_are_refused(build, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build()


def test_patterns_are_values() -> None:
    patterns: set[AttentionPattern] = {Causal(), Causal(), Hybrid(window=8, windows=3), Hybrid(window=8, windows=3)}
    assert len(patterns) == 2
