"""Attention against an explicit loop over heads, queries and keys, and against its laws. math.md 1.2 to 1.4, 1.11."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from puna.arch.attention_pattern import Causal
from puna.arch.config import ModelConfig
from puna.arch.variants import ScoreScale
from puna.model.attention import Attention, addend, attend_where
from puna.model.positions import apply_rope, rope_angles, rope_frequencies
from puna.model.visibility import attention_mask

TOKENS = 9
HEADS = [(4, 4), (8, 2), (4, 1)]  # MHA, GQA 4:1, MQA


@pytest.fixture
def build(tiny_config: ModelConfig) -> Callable[..., Attention]:
    def attention(n_heads: int = 4, n_kv_heads: int = 2, dim: int = 16, head_dim: int = 6) -> Attention:
        torch.manual_seed(0)
        config = replace(tiny_config, dim=dim, head_dim=head_dim, n_heads=n_heads, n_kv_heads=n_kv_heads)
        module = Attention(config, layer=0).double()
        for weight in module.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        return module

    return attention


def inputs(dim: int = 16, tokens: int = TOKENS) -> Tensor:
    return torch.randn(2, tokens, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def angles(module: Attention, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    pairs = module.head_dim // 2
    theta_P = torch.tensor([10_000.0 ** (-j / pairs) for j in range(pairs)], dtype=torch.float64)
    return rope_angles(theta_P, positions_BT)


def run(module: Attention, x_BTD: Tensor, mask: Tensor | None = None, cache: "Replaced | None" = None) -> Tensor:
    cos_BTP, sin_BTP = (each.to(x_BTD.dtype) for each in angles(module, torch.arange(x_BTD.shape[1])[None]))
    rotate = partial(apply_rope, cos_BTP=cos_BTP, sin_BTP=sin_BTP)
    return module(x_BTD, rotate, partial(attend_where, mask=mask), cache)


def explicit(module: Attention, x_BTD: Tensor, visible: Callable[[int, int, int], bool]) -> Tensor:
    """Attention as the papers write it: one dot product, one exponential and one weight at a time."""
    cos, sin = angles(module, torch.arange(x_BTD.shape[1])[None])
    E = module.head_dim
    q, k, v = ((x_BTD @ p.weight.T).unflatten(-1, (-1, E)) for p in (module.q_proj, module.k_proj, module.v_proj))
    q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
    H, G = q.shape[2], k.shape[2]
    out = torch.zeros_like(q)
    for b in range(len(x_BTD)):
        for h in range(H):
            group = h // (H // G)
            for i in range(x_BTD.shape[1]):
                keys = [j for j in range(x_BTD.shape[1]) if visible(b, i, j)]
                scores = torch.stack([q[b, i, h] @ k[b, j, group] for j in keys]) / math.sqrt(E)
                p = torch.exp(scores - scores.max())
                p = p / p.sum()
                out[b, i, h] = sum(weight * v[b, j, group] for weight, j in zip(p, keys, strict=True))
    return out.flatten(2) @ module.o_proj.weight.T


@dataclass
class Replaced:
    """A store that answers with something made of what it is given; nothing is kept."""

    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    length: int = 0

    def positions(self, layer: int, tokens: int) -> Tensor:
        return torch.arange(self.length + tokens)

    def extend(self, layer: int, k_BGTE: Tensor, v_BGTE: Tensor) -> tuple[Tensor, Tensor]:
        return self.change(k_BGTE, v_BGTE)

    def advance(self, tokens: int) -> None:
        self.length += tokens


@torch.no_grad()
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), HEADS)
def test_fused_attention_equals_the_explicit_loop(
    build: Callable[..., Attention], n_heads: int, n_kv_heads: int
) -> None:
    module, x = build(n_heads, n_kv_heads), inputs()
    expected = explicit(module, x, lambda b, i, j: j <= i)
    torch.testing.assert_close(run(module, x), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    single = run(module.float(), x.float())
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_documents_in_one_row_attend_as_if_each_stood_alone(build: Callable[..., Attention]) -> None:
    module, x = build(), inputs()
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [7, 7, 7, 7, 7, 7, 7, 7, 7]])
    mask = attention_mask(Causal(), 4, torch.arange(TOKENS), torch.arange(TOKENS), documents)
    expected = explicit(module, x, lambda b, i, j: j <= i and bool(documents[b, i] == documents[b, j]))
    torch.testing.assert_close(run(module, x, mask), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mask_that_is_added_changes_no_bit(build: Callable[..., Attention], dtype: torch.dtype) -> None:
    module, x = build().to(dtype), inputs().to(dtype)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [7, 7, 7, 7, 7, 7, 7, 7, 7]])
    mask = attention_mask(Causal(), 4, torch.arange(TOKENS), torch.arange(TOKENS), documents)
    assert addend(mask, dtype).dtype == dtype
    assert torch.equal(run(module, x, addend(mask, dtype)), run(module, x, mask))


@torch.no_grad()
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(8, 2), (4, 1)])
def test_grouped_heads_equal_full_heads_whose_key_and_value_rows_are_repeated(
    build: Callable[..., Attention], n_heads: int, n_kv_heads: int
) -> None:
    grouped, full = build(n_heads, n_kv_heads), build(n_heads, n_heads)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        weight = grouped.get_submodule(name).weight
        if name in ("k_proj", "v_proj"):
            weight = weight.unflatten(0, (n_kv_heads, -1)).repeat_interleave(n_heads // n_kv_heads, 0).flatten(0, 1)
        full.get_submodule(name).weight.copy_(weight)
    torch.testing.assert_close(run(grouped, inputs()), run(full, inputs()), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_weights_of_every_query_sum_to_one(build: Callable[..., Attention]) -> None:
    module = build(n_heads=4, n_kv_heads=2, dim=24, head_dim=6)
    module.o_proj.weight.copy_(torch.eye(24))
    ones = run(module, inputs(24), cache=Replaced(lambda k, v: (k, torch.ones_like(v))))
    torch.testing.assert_close(ones, torch.ones_like(ones), rtol=0, atol=1e-12)


@torch.no_grad()
def test_permuting_keys_and_values_together_changes_nothing(build: Callable[..., Attention]) -> None:
    module, query = build(), inputs(tokens=1)
    generator = torch.Generator().manual_seed(2)
    past_k, past_v = (torch.randn(2, 2, 20, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    order = torch.randperm(21, generator=generator)

    def stored(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((past_k, k), 2), torch.cat((past_v, v), 2)

    def permuted(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k_all, v_all = stored(k, v)
        return k_all[:, :, order], v_all[:, :, order]

    expected = run(module, query, cache=Replaced(stored))
    torch.testing.assert_close(run(module, query, cache=Replaced(permuted)), expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_only_key_value_heads_reach_the_store(build: Callable[..., Attention]) -> None:
    shapes: list[tuple[int, ...]] = []

    def record(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        shapes.extend((tuple(k.shape), tuple(v.shape)))
        return k, v

    run(build(n_heads=8, n_kv_heads=2), inputs(), cache=Replaced(record))
    assert shapes == [(2, 2, TOKENS, 6)] * 2


def test_no_output_depends_on_a_later_input(build: Callable[..., Attention]) -> None:
    module, x = build(), inputs().requires_grad_()
    for i in range(TOKENS):
        (gradient,) = torch.autograd.grad(run(module, x)[:, i].sum(), x)
        assert not gradient[:, i + 1 :].any()
        assert gradient[:, : i + 1].abs().amax(-1).gt(0).all()


def test_the_gradients_pass_a_central_difference_check(build: Callable[..., Attention]) -> None:
    module = build(n_heads=2, n_kv_heads=1, dim=4, head_dim=4)
    leaves = (inputs(4, tokens=3).requires_grad_(), *module.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: run(module, x), leaves, eps=1e-6, rtol=1e-6, atol=1e-8)


def test_the_worked_example_of_source_002_has_its_weights(build: Callable[..., Attention]) -> None:
    grouped = build(n_heads=8, n_kv_heads=2, dim=512, head_dim=64)
    full = build(n_heads=8, n_kv_heads=8, dim=512, head_dim=64)
    assert tuple(grouped.k_proj.weight.shape) == tuple(grouped.v_proj.weight.shape) == (128, 512)
    assert sum(weight.numel() for weight in grouped.parameters()) == 655_360
    assert sum(weight.numel() for weight in full.parameters()) == 1_048_576


@pytest.mark.parametrize(("scale", "power"), [("1/sqrt", 0.0), ("1", 1.0), ("1/d", -1.0)])
def test_scores_of_unit_vectors_have_variance_one(tiny_config: ModelConfig, scale: ScoreScale, power: float) -> None:
    config = replace(tiny_config, head_dim=64, score_scale=scale)
    q, k = torch.randn(2, 100_000, 64, generator=torch.Generator().manual_seed(0))
    variance = float(((q * k).sum(-1) * config.score_factor).var())
    assert variance == pytest.approx(64.0**power, rel=0.05)


def test_the_tests_own_frequencies_are_the_products(tiny_config: ModelConfig, build: Callable[..., Attention]) -> None:
    theta_P = rope_frequencies(replace(tiny_config, head_dim=6)).double()
    expected = rope_angles(theta_P, torch.arange(4)[None])
    for got, want in zip(angles(build(), torch.arange(4)[None]), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
