"""A model with fewer key-value heads: still a plain Llama, the same function where no head goes, a smaller cache."""

import copy

import pytest
import torch

from puna.compression.fewer_heads import attention_grams, pool_key_value_heads
from puna.compression.heads import Pooling
from puna.errors import BadData, UsageError
from puna.generation.kv_cache import KVCache
from puna.model.llama import Llama
from puna.model.surgery import get_linear

IDS = torch.randint(512, (2, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def many(build_llama) -> Llama:
    """As many key-value heads as query heads."""
    return build_llama(n_kv_heads=4).double()


@pytest.mark.parametrize("pooling", ["joint", "aligned", "mean"])
def test_no_head_less_is_the_same_model(many: Llama, pooling: Pooling) -> None:
    before = many(IDS)
    pool_key_value_heads(many, 4, attention_grams(many, [IDS]), pooling)
    torch.testing.assert_close(many(IDS), before)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_what_comes_out_is_a_plain_llama_that_shrinks_its_cache(many: Llama, kv_heads: int) -> None:
    losses = pool_key_value_heads(many, kv_heads, attention_grams(many, [IDS]))
    assert many.config.n_kv_heads == kv_heads
    assert all(loss is not None and loss.keys > 0 and loss.values > 0 for loss in losses)
    plain = Llama(many.config).double()
    plain.load_state_dict(many.state_dict())  # names and shapes are Llama's
    torch.testing.assert_close(plain(IDS), many(IDS))
    cache = KVCache(many.config, batch=2, capacity=24, dtype=torch.float64)
    torch.testing.assert_close(many.hidden(IDS, cache=cache), many.hidden(IDS))


def test_the_grams_are_those_of_what_attention_reads(many: Llama) -> None:
    grams = attention_grams(many, [IDS[:, :9], IDS[:, 9:]])
    x_BTD = many.layers[0].input_layernorm(many.embed_tokens(IDS)).flatten(0, 1)
    torch.testing.assert_close(grams[0], (x_BTD.T @ x_BTD / len(x_BTD)).detach())
    assert len(grams) == many.config.n_layers
    with pytest.raises(BadData, match="at least one window"):
        attention_grams(many, [])
    get_linear(many, "layers.0.mlp.down_proj").weight.data[:] = torch.nan
    with pytest.raises(BadData, match=r"layers.1.self_attn.q_proj"):
        attention_grams(many, [IDS])


def test_heads_that_agree_up_to_gauge_are_one_without_a_loss(build_llama) -> None:
    few, many = build_llama(n_kv_heads=2).double(), build_llama(n_kv_heads=4).double()
    state = few.state_dict()
    for layer in range(few.config.n_layers):
        for name in ("k_proj", "v_proj"):
            key = f"layers.{layer}.self_attn.{name}.weight"
            heads = state[key].unflatten(0, (2, -1))
            state[key] = heads.repeat_interleave(2, 0).flatten(0, 1)
    many.load_state_dict(state)
    turn_in_place(many)
    torch.testing.assert_close(many(IDS), few(IDS))
    mean = copy.deepcopy(many)
    pool_key_value_heads(many, 2, attention_grams(many, [IDS]))
    torch.testing.assert_close(many(IDS), few(IDS), rtol=1e-6, atol=1e-6)
    pool_key_value_heads(mean, 2, None, "mean")
    assert not torch.allclose(mean(IDS), few(IDS), rtol=1e-2)


@torch.no_grad()
def turn_in_place(model: Llama) -> None:
    """Give each head's values coordinates of its own, which the output's weight undoes."""
    size, generator = model.config.head_dim, torch.Generator().manual_seed(8)
    for block in model.layers:
        for head in range(model.config.n_heads):
            rows = slice(head * size, (head + 1) * size)
            mix = torch.randn(size, size, generator=generator, dtype=torch.float64) + 3 * torch.eye(size)
            v, o = block.self_attn.v_proj.weight, block.self_attn.o_proj.weight
            v[rows] = mix @ v[rows]
            o[:, rows] = o[:, rows] @ torch.linalg.inv(mix)


def test_a_wrong_number_changes_nothing(many: Llama) -> None:
    before = many(IDS)
    with pytest.raises(UsageError, match="kv_heads: expected a divisor of 4, got 3"):
        pool_key_value_heads(many, 3, attention_grams(many, [IDS]))
    assert torch.equal(many(IDS), before)
    assert many.config.n_kv_heads == 4
