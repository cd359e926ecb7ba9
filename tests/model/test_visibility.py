"""A model whose layers see by a pattern: the dense mask's answers, the reach of its layers, and nothing from the future."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from puna.arch.attention_pattern import AttentionPattern, Blocks, Causal, Hybrid, SlidingWindow
from puna.arch.config import ModelConfig
from puna.generation.kv_cache import KVCache
from puna.model import visibility
from puna.model.attention import attend_causally, attend_where
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.model.visibility import attention_mask, ways_to_attend

CPU, T32 = torch.device("cpu"), 1e-5
CONFIG = ModelConfig(
    vocab_size=61, dim=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_seq_len=128
)
PATTERNS: list[AttentionPattern] = [
    SlidingWindow(window=12),
    SlidingWindow(window=9, sinks=3),
    SlidingWindow(window=9, sinks=1, learnable_sink=True),
    Blocks(size=10),
    Blocks(size=10, shifted=True),
    Hybrid(window=8, windows=2, sinks=2),
]
IDS = torch.randint(61, (2, 70), generator=torch.Generator().manual_seed(1))


def build(pattern: AttentionPattern, **changes: int) -> Llama:
    """Weights large enough that attention matters."""
    model = initialise(Llama(replace(CONFIG, pattern=pattern, **changes)), seed=3)
    for name, weight in model.named_parameters():
        if name.endswith("_proj.weight"):
            weight.data *= 8
        if name.endswith("sinks.weight"):
            weight.data.copy_(torch.tensor([1.0, -1.0, 0.5, 2.0]))
    return model


def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pattern by one dense mask from here on: the oracle."""

    def masked(pattern, tokens, documents_BT, device, dtype):
        mask = attention_mask(pattern, CONFIG.n_heads, torch.arange(tokens), torch.arange(tokens), documents_BT)
        return lambda q, k, v, sink_H: attend_where(q, k, v, sink_H, mask=mask)

    monkeypatch.setattr(visibility, "_over_own_tokens", masked)


def passes(model: Llama, documents: Tensor | None) -> list[Tensor]:
    hidden_BTD = model.hidden(IDS, documents_BT=documents)
    loss = (hidden_BTD * torch.linspace(-1, 1, hidden_BTD.numel()).view_as(hidden_BTD)).sum()
    return [hidden_BTD, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_whole_model_equals_its_dense_masks_forward_and_backward(monkeypatch, pattern, packed: bool) -> None:
    model = build(pattern)
    documents = torch.arange(70).div(25, rounding_mode="floor").expand(2, 70) if packed else None
    ours = passes(model, documents)
    dense(monkeypatch)
    for got, expected in zip(ours, passes(model, documents), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=T32 * max(1.0, float(expected.detach().abs().max())))


def gradient_by_position(model: Llama, row: int) -> Tensor:
    """How much an output feels each input, (T,)."""
    table = model.embed_tokens.weight.detach()[IDS[:1]].requires_grad_()
    model.embed_tokens.register_forward_hook(lambda *_: table)
    (gradient,) = torch.autograd.grad(model.hidden(IDS[:1])[0, row].sum(), table)
    return gradient[0].abs().amax(dim=-1)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_no_gradient_comes_from_the_future(pattern: AttentionPattern) -> None:
    felt = gradient_by_position(build(pattern), 40)
    assert not felt[41:].any()
    assert felt[40] > 0


def test_a_window_reaches_exactly_as_far_as_its_layers_allow() -> None:
    felt = gradient_by_position(build(SlidingWindow(window=6)), 50)
    reach = CONFIG.n_layers * (6 - 1)
    assert felt[50 - reach] > 0
    assert not felt[: 50 - reach].any()


def test_nothing_crosses_blocks_unless_they_are_shifted() -> None:
    assert not gradient_by_position(build(Blocks(size=10)), 45)[:40].any()
    assert gradient_by_position(build(Blocks(size=10, shifted=True)), 45)[35:46].all()


def test_the_one_full_layer_of_a_hybrid_lets_everything_through() -> None:
    assert gradient_by_position(build(Hybrid(window=6, windows=2)), 50)[:51].all()


@torch.no_grad()
@pytest.mark.parametrize("pattern", [SlidingWindow(window=70), Blocks(size=70), Hybrid(window=80, windows=1)], ids=repr)
def test_a_window_and_blocks_as_wide_as_the_row_are_the_causal_model(pattern: AttentionPattern) -> None:
    torch.testing.assert_close(build(pattern).hidden(IDS), build(Causal()).hidden(IDS), rtol=T32, atol=T32)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[1], [30, 31, 32], [*range(1, 70)], [5, 40], [69]])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_reading_through_a_cache_equals_one_pass(pattern: AttentionPattern, cuts: list[int]) -> None:
    model = build(pattern)
    cache = KVCache(model.config, 70, batch=2)
    parts = torch.cat([model.hidden(part, cache=cache) for part in IDS.tensor_split(cuts, dim=1)], dim=1)
    torch.testing.assert_close(parts, model.hidden(IDS), rtol=0, atol=T32 * float(parts.abs().max()))


def test_layers_that_see_alike_share_a_way_and_a_new_token_needs_no_mask() -> None:
    config = replace(CONFIG, n_layers=6, pattern=Hybrid(window=8, windows=2))
    ways = ways_to_attend(config, 20, None, None, CPU, torch.float32)
    assert ways[0] is ways[1] is ways[3] is ways[4]
    assert ways[2] is ways[5] is attend_causally
    cache = KVCache(config, 40)
    cache.advance(20)
    assert set(ways_to_attend(config, 1, None, cache, CPU, torch.float32)) == {attend_causally}
    assert attend_causally not in ways_to_attend(config, 2, None, cache, CPU, torch.float32)


@pytest.mark.parametrize(("tokens", "stored"), [(1, 0), (5, 0), (1, 6), (3, 4)])
def test_the_mask_says_who_sees_whom(tokens: int, stored: int) -> None:
    mask = attention_mask(Causal(), 4, torch.arange(stored, stored + tokens), torch.arange(stored + tokens))
    assert mask.shape == (1, 1, tokens, stored + tokens)
    for query in range(tokens):
        assert mask[0, 0, query].tolist() == [key <= stored + query for key in range(stored + tokens)]
