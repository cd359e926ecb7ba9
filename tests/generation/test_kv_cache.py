"""The cache's laws: cached = full for any split, and the bytes are the formula's."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.arch.attention_pattern import Hybrid, SlidingWindow
from puna.arch.config import ModelConfig
from puna.generation.kv_cache import KVCache
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.planning.counting import kv_cache_bytes, kv_cache_bytes_per_token

T32 = 1e-5
HEADS = 4
CONFIG = ModelConfig(
    vocab_size=61, dim=32, n_layers=3, n_heads=HEADS, n_kv_heads=2, head_dim=6, ffn_dim=48, max_seq_len=64
)
KV_HEADS = {"MHA": HEADS, "GQA": 2, "MQA": 1}
IDS = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(1))


def build(n_kv_heads: int) -> Llama:
    """A model whose weights are large enough that attention matters."""
    model = initialise(Llama(replace(CONFIG, n_kv_heads=n_kv_heads)), seed=3)
    for name, weight in model.named_parameters():
        if name.endswith("_proj.weight"):
            weight.data *= 10
    return model


MODELS = {name: build(count) for name, count in KV_HEADS.items()}


@torch.no_grad()
def read_in_parts(model: Llama, cache: KVCache, cuts: list[int]) -> torch.Tensor:
    """hidden_BTD of all ids, read part by part."""
    parts = IDS.tensor_split(cuts, dim=1)
    return torch.cat([model.hidden(part, cache=cache) for part in parts if part.shape[1]], dim=1)


@torch.no_grad()
def relative_error(model: Llama, cuts: list[int], cache: KVCache | None = None) -> float:
    full = model.hidden(IDS)
    cache = KVCache(model.config, IDS.shape[1], batch=2) if cache is None else cache
    return float((read_in_parts(model, cache, cuts) - full).abs().max() / full.abs().max())


@pytest.mark.parametrize("heads", KV_HEADS)
@given(cuts=st.lists(st.integers(1, 23), unique=True).map(sorted))
def test_cached_equals_full_for_any_split_of_the_prompt(heads: str, cuts: list[int]) -> None:
    assert relative_error(MODELS[heads], cuts) < T32


@pytest.mark.parametrize("heads", KV_HEADS)
def test_cached_one_token_at_a_time_equals_full(heads: str) -> None:
    assert relative_error(MODELS[heads], list(range(1, 24))) < T32


class ForgetsTheFirst(KVCache):
    """A broken cache: the first token's key is lost."""

    def extend(self, layer, k_BGTE, v_BGTE):
        k, v = super().extend(layer, k_BGTE, v_BGTE)
        k[:, :, 0] = 0
        return k, v


class MovesPositions(KVCache):
    """A broken cache: it counts one token too few, so that new tokens stand at the wrong position."""

    def advance(self, tokens):
        super().advance(max(1, tokens - 1))


@pytest.mark.parametrize("broken", [ForgetsTheFirst, MovesPositions])
def test_the_law_sees_a_broken_cache(broken: type[KVCache]) -> None:
    model = MODELS["GQA"]
    assert relative_error(model, [10], broken(model.config, 24, batch=2)) > 100 * T32


@pytest.mark.parametrize("heads", KV_HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_allocated_bytes_are_the_formula(heads: str, dtype: torch.dtype) -> None:
    config = MODELS[heads].config
    cache = KVCache(config, 37, batch=3, dtype=dtype)
    assert cache.bytes == 2 * config.n_layers * config.n_kv_heads * config.head_dim * 37 * 3 * dtype.itemsize
    k = torch.zeros(3, config.n_kv_heads, 1, config.head_dim)
    handed_out = [tensor for layer in range(config.n_layers) for tensor in cache.extend(layer, k, k)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in handed_out}
    assert sum(storages.values()) == cache.bytes


def test_cache_ratio_of_grouped_to_multi_head_is_exact() -> None:
    bytes_of = {name: KVCache(MODELS[name].config, 100).bytes for name in KV_HEADS}
    assert bytes_of["MHA"] == 2 * bytes_of["GQA"] == HEADS * bytes_of["MQA"]


@torch.no_grad()
def test_stored_by_key_value_head_never_by_query_head() -> None:
    model = MODELS["GQA"]
    seen = []

    class Spy(KVCache):
        def extend(self, layer, k_BGTE, v_BGTE):
            k, v = super().extend(layer, k_BGTE, v_BGTE)
            seen.append((k.shape, v.shape))
            return k, v

    model.hidden(IDS, cache=Spy(model.config, 24, batch=2))
    assert seen == [((2, 2, 24, 6), (2, 2, 24, 6))] * model.config.n_layers


def test_bytes_a_token_and_layer_of_the_worked_example() -> None:
    """math.md 1.3: d = 512, h = 8, g = 2: 512 bytes a token and layer at 2 bytes, against 2048 for multi-head."""
    grouped = replace(CONFIG, dim=512, n_layers=1, n_heads=8, n_kv_heads=2, head_dim=64)
    assert KVCache(grouped, 100, dtype=torch.bfloat16).bytes == 512 * 100
    assert KVCache(replace(grouped, n_kv_heads=8), 100, dtype=torch.bfloat16).bytes == 2048 * 100


@torch.no_grad()
def test_a_cache_never_takes_more_than_its_capacity() -> None:
    model = MODELS["MQA"]
    with pytest.raises(AssertionError, match="23 tokens was given 24"):
        model.hidden(IDS, cache=KVCache(model.config, 23, batch=2))


def test_a_windows_cache_stays_as_large_as_the_window_and_its_sinks() -> None:
    config = replace(CONFIG, pattern=SlidingWindow(window=8, sinks=2), max_seq_len=4096)
    sizes = [KVCache(config, tokens).bytes for tokens in (5, 10, 100, 4096)]
    per_token = kv_cache_bytes_per_token(config, 4)
    assert sizes == [5 * per_token, 10 * per_token, 10 * per_token, 10 * per_token]
    assert sizes == [kv_cache_bytes(config, tokens, 4) for tokens in (5, 10, 100, 4096)]


def test_of_a_hybrid_only_the_windows_layers_are_small() -> None:
    config = replace(CONFIG, n_layers=6, pattern=Hybrid(window=8, windows=2))
    assert KVCache(config, 100).bytes == kv_cache_bytes(config, 100, 4) == 4 * 2 * config.kv_dim * (4 * 8 + 2 * 100)


@given(st.integers(1, 9), st.integers(0, 4), st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_a_ring_says_where_each_key_that_it_returns_stood(window: int, sinks: int, parts: list[int]) -> None:
    """Keys are their own positions here."""
    config = replace(CONFIG, n_layers=1, n_kv_heads=1, n_heads=1, pattern=SlidingWindow(window=window, sinks=sinks))
    cache, done = KVCache(config, sum(parts)), 0
    for tokens in parts:
        new = torch.arange(done, done + tokens).float()[None, None, :, None].expand(1, 1, tokens, 6)
        positions = cache.positions(0, tokens)
        k, v = cache.extend(0, new, new)
        cache.advance(tokens)
        assert torch.equal(k[0, 0, :, 0], positions.float())
        assert torch.equal(v, k)
        done += tokens
        wanted = {p for p in range(done) if p < sinks or p >= done - window}
        assert wanted <= set(positions.tolist())
        assert len(set(positions.tolist())) == len(positions)
