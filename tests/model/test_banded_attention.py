"""Attention by blocks against the dense mask, values and gradients, for every pattern. math.md 1.4."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from puna.arch.attention_pattern import BlockPart, Blocks, HeadPattern, SlidingWindow
from puna.model import banded_attention as banded_attention_module
from puna.model.attention import Attend, attend_causally, attend_where
from puna.model.banded_attention import HeadParts, banded_attention
from puna.model.visibility import attention_mask

HEADS = [(4, 4), (4, 2), (4, 1)]  # MHA, GQA, MQA
CPU = torch.device("cpu")
local = st.one_of(
    st.builds(SlidingWindow, window=st.integers(1, 90), sinks=st.integers(0, 9)),
    st.builds(BlockPart, size=st.integers(1, 90)),
    st.integers(2, 90).map(lambda size: BlockPart(size=size, offset=size // 2)),
)


def drawn(tokens: int, heads: tuple[int, int] = (4, 2), dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """q_BHTE, k_BGTE and v_BGTE, laid out as projections leave them."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((2, tokens, count, 8) for count in (heads[0], heads[1], heads[1]))
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_()
        for shape in shapes
    )


def dense(pattern: HeadPattern, tokens: int, documents: Tensor | None = None) -> Attend:
    """The oracle: all n x n scores, masked."""
    index = torch.arange(tokens)
    seen = pattern.allows(index[:, None], index[None, :])[None, None]
    if documents is not None:
        seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    return partial(attend_where, mask=seen)


def assert_alike(
    ours: Attend, oracle: Attend, inputs: tuple[Tensor, ...], sink_H: Tensor | None, tolerance: float
) -> None:
    """Values and the gradients of everything, relative to the largest, or to 1 where all are smaller: some are 0."""
    leaves = inputs if sink_H is None else (*inputs, sink_H)
    results = []
    for attend in (ours, oracle):
        y = attend(*inputs, sink_H)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        results.append((y, *torch.autograd.grad(y, leaves, weights)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(
            got, expected, rtol=0, atol=tolerance * max(1.0, float(expected.detach().abs().max()))
        )


@settings(deadline=None)
@given(local, st.integers(1, 200))
def test_by_blocks_equals_the_dense_mask(pattern: HeadPattern, tokens: int) -> None:
    ours = banded_attention(pattern, tokens, None, CPU, torch.float64)
    assert_alike(ours, dense(pattern, tokens), drawn(tokens), None, 1e-10)


@settings(deadline=None)
@given(local, st.integers(1, 120), st.integers(0, 3))
def test_by_blocks_equals_the_dense_mask_in_packed_rows(pattern: HeadPattern, tokens: int, seed: int) -> None:
    starts = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed)) < 0.1
    documents = starts.cumsum(dim=1)
    ours = banded_attention(pattern, tokens, documents, CPU, torch.float64)
    assert_alike(ours, dense(pattern, tokens, documents), drawn(tokens), None, 1e-10)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pattern", [SlidingWindow(window=40, sinks=3), BlockPart(size=24, offset=12)])
def test_many_short_calls_of_the_kernel_equal_the_dense_mask(monkeypatch, pattern: HeadPattern, packed: bool) -> None:
    monkeypatch.setattr(banded_attention_module, "_SPAN_TOKENS", 64)
    documents = (
        (torch.rand(2, 333, generator=torch.Generator().manual_seed(5)) < 0.05).cumsum(dim=1) if packed else None
    )
    ours = banded_attention(pattern, 333, documents, CPU, torch.float64)
    assert_alike(ours, dense(pattern, 333, documents), drawn(333), None, 1e-10)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grouped_heads_do_too_in_both_precisions(heads: tuple[int, int], dtype: torch.dtype) -> None:
    pattern = SlidingWindow(window=40, sinks=3)
    inputs = drawn(301, heads, dtype)
    ours = banded_attention(pattern, 301, None, CPU, dtype)
    assert_alike(ours, dense(pattern, 301), inputs, None, 1e-5 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("heads", HEADS)
def test_shifted_halves_of_the_heads_equal_their_mask(heads: tuple[int, int]) -> None:
    pattern = Blocks(size=24, shifted=True)
    ours = HeadParts([banded_attention(part, 100, None, CPU, torch.float64) for part in pattern.parts])
    mask = attention_mask(pattern, heads[0], torch.arange(100), torch.arange(100))
    assert mask.shape == (1, heads[0], 100, 100)
    assert not torch.equal(mask[0, 0], mask[0, -1])
    assert_alike(ours, partial(attend_where, mask=mask), drawn(100, heads), None, 1e-10)


def test_a_learned_sink_is_one_more_key_whose_value_is_zero() -> None:
    q, k, v = drawn(30, (4, 2))
    sink_H = torch.tensor([0.5, -1.0, 2.0, -torch.inf], dtype=torch.float64)
    seen = SlidingWindow(window=7).allows(torch.arange(30)[:, None], torch.arange(30)[None, :])
    scores = (q @ k.repeat_interleave(2, dim=1).mT / 8**0.5).masked_fill(~seen, -torch.inf)
    weights = torch.cat((scores, sink_H[None, :, None, None].expand(2, 4, 30, 1)), dim=-1).softmax(-1)[..., :-1]
    expected = weights @ v.repeat_interleave(2, dim=1)
    torch.testing.assert_close(attend_where(q, k, v, sink_H, mask=seen[None, None]), expected, rtol=1e-10, atol=1e-12)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 5), st.integers(1, 130))
def test_a_learned_sink_by_blocks_equals_the_dense_mask(window: int, sinks: int, tokens: int) -> None:
    pattern = SlidingWindow(window=window, sinks=sinks, learnable_sink=True)
    sink_H = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    ours = banded_attention(pattern, tokens, None, CPU, torch.float64)
    assert_alike(ours, dense(pattern, tokens), drawn(tokens), sink_H, 1e-10)


@pytest.mark.parametrize(
    "pattern", [SlidingWindow(window=200), SlidingWindow(window=90, sinks=10), BlockPart(size=100)]
)
def test_what_is_as_wide_as_the_row_is_full_attention(pattern: HeadPattern) -> None:
    ours = banded_attention(pattern, 100, None, CPU, torch.float64)
    assert [span.blocks for span in ours.spans] == [1]
    assert_alike(ours, attend_causally, drawn(100), None, 1e-12)


@pytest.mark.parametrize(
    "pattern", [SlidingWindow(window=9, sinks=2), BlockPart(size=12), BlockPart(size=12, offset=6)]
)
def test_no_gradient_comes_from_the_future_or_from_what_is_not_seen(pattern: HeadPattern) -> None:
    q, k, v = drawn(40)
    ours = banded_attention(pattern, 40, None, CPU, torch.float64)
    for i in (0, 5, 6, 11, 12, 25, 39):
        gradients = torch.autograd.grad(ours(q, k, v)[:, :, i].sum(), (k, v))
        seen = torch.tensor([bool(pattern.allows(i, j)) for j in range(40)])
        for gradient in gradients[1 if seen.sum() == 1 else 0 :]:  # of one key's weight, 1, nothing can change
            assert torch.equal(gradient.abs().amax(dim=(0, 1, 3)) > 0, seen)


def test_no_tensor_is_as_large_as_the_square() -> None:
    sizes: list[int] = []

    def note(each: Tensor) -> Tensor:
        sizes.append(each.untyped_storage().nbytes())
        return each

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda each: each)
    q, k, v = drawn(4096, (4, 2), torch.float32)
    with hooks:
        banded_attention(SlidingWindow(window=64, sinks=2), 4096, None, CPU, torch.float32)(q, k, v)
    assert max(sizes) <= 4 * 2 * 4096 * 4 * 8 * 4  # four times the queries
    assert 8 * max(sizes) < 4096 * 4096 * 4
