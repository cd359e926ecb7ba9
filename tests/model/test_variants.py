"""Every part that a study may exchange, in a whole model. math.md 1.6 to 1.10."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from puna.arch.variants import FEED_FORWARDS
from puna.generation.kv_cache import KVCache
from puna.model.llama import Llama
from puna.model.loss import chunked_nats
from puna.model.positions import sinusoids
from tests.variants import OWN_VARIANTS, PLAIN_VARIANTS, VARIANTS

IDS = torch.randint(0, 512, (2, 12), generator=torch.Generator().manual_seed(5))
Build = Callable[..., Llama]


@pytest.mark.parametrize("name", VARIANTS)
def test_no_variant_sees_the_future_in_evaluation(build_llama: Build, name: str) -> None:
    model = build_llama(**VARIANTS[name])
    changed = IDS.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 512
    before, after = model(IDS), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_from_a_cache_equals_one_pass(build_llama: Build, name: str) -> None:
    model = build_llama(**VARIANTS[name])
    cache, parts = KVCache(model.config, 12, batch=2), []
    for start, end in ((0, 5), (5, 6), (6, 12)):
        parts.append(model.hidden(IDS[:, start:end], cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(IDS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_gradients_of_every_parameter_pass_a_central_difference_check(build_llama: Build, name: str) -> None:
    sizes = {"vocab_size": 11, "dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "ffn_dim": 6}
    model = build_llama(**{"max_seq_len": 6, **sizes, **VARIANTS[name]}).double().train()
    ids = torch.tensor([[1, 4, 7, 2, 9]])
    names = [name for name, _ in model.named_parameters()]

    def nats(*weights: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (ids,))
        return F.cross_entropy(logits[0, :-1], ids[0, 1:])

    leaves = [weight.detach().clone().requires_grad_() for weight in model.parameters()]
    if model.config.norm == "batch":
        for norm in (module for module in model.modules() if hasattr(module, "running_mean")):
            norm.eval()  # running statistics are data here; training mode has a test of its own
    assert torch.autograd.gradcheck(nats, leaves, eps=1e-6, rtol=1e-5, atol=1e-8, fast_mode=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_chunked_loss_is_the_full_one(build_llama: Build, name: str) -> None:
    model = build_llama(**VARIANTS[name])
    got = chunked_nats(model.lm_head, model.hidden(IDS[:, :-1]), IDS[:, 1:])
    want = F.cross_entropy(model(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(got.sum, want.double(), rtol=1e-5, atol=0)
    gradients = (torch.autograd.grad(nats, list(model.parameters())) for nats in (got.sum, want))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()) + 1e-6)


@pytest.mark.parametrize("name", PLAIN_VARIANTS)
def test_transformers_computes_the_plain_ones_alike(build_llama: Build, name: str) -> None:
    model = build_llama(**PLAIN_VARIANTS[name])
    config = model.config
    assert not config.variants
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.ffn_dim,
            num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads, head_dim=config.head_dim, rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta, tie_word_embeddings=config.tied_embeddings,
            hidden_act=FEED_FORWARDS[config.ffn], attention_bias=config.attention_bias, mlp_bias=config.mlp_bias,
            max_position_embeddings=config.max_seq_len,
        )
    ).eval()  # fmt: skip
    state = {
        name if name.startswith("lm_head.") else f"model.{name}": weight for name, weight in model.state_dict().items()
    }
    theirs.load_state_dict(state)
    want = theirs(IDS).logits.detach()
    torch.testing.assert_close(model(IDS), want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", OWN_VARIANTS)
def test_what_is_no_llama_says_so_and_computes_something_else(build_llama: Build, name: str) -> None:
    model, llama = build_llama(**OWN_VARIANTS[name]), build_llama()
    assert model.config.variants
    assert (model(IDS) - llama(IDS)).abs().max() > 1e-3


def test_a_post_norm_block_without_branches_normalises_twice(build_llama: Build) -> None:
    model = build_llama(norm_placement="post")
    block = model.layers[0]
    nn.init.zeros_(block.self_attn.o_proj.weight)
    nn.init.zeros_(block.mlp.down_proj.weight)
    x = torch.randn(1, 4, model.config.dim)
    got = block(x, lambda x: x, lambda q, k, v, sink: q, None)
    assert torch.equal(got, block.post_feedforward_layernorm(block.post_attention_layernorm(x)))


def test_placement_changes_the_count_by_the_final_norm_alone(build_llama: Build) -> None:
    before, after = (build_llama(norm_placement=placement) for placement in ("pre", "post"))
    numbers = (sum(weight.numel() for weight in model.parameters()) for model in (before, after))
    assert next(numbers) - next(numbers) == before.config.dim


def test_sinusoids_are_rotated_by_a_shift_and_have_one_length() -> None:
    PE = sinusoids(torch.arange(40), 16).double()
    assert torch.equal(PE[0], torch.tensor([0.0, 1.0] * 8, dtype=torch.float64))
    torch.testing.assert_close(PE.square().sum(-1), torch.full((40,), 8.0, dtype=torch.float64), rtol=1e-6, atol=0)
    shift = torch.tensor([10_000 ** (-2 * j / 16) * 7 for j in range(8)], dtype=torch.float64)
    sin, cos = PE[:-7, 0::2], PE[:-7, 1::2]
    turned = torch.stack((sin * shift.cos() + cos * shift.sin(), cos * shift.cos() - sin * shift.sin()), -1).flatten(1)
    torch.testing.assert_close(turned, PE[7:], rtol=0, atol=1e-5)


def test_sinusoids_are_added_to_embeddings_times_the_root_of_the_width(build_llama: Build) -> None:
    model = build_llama(position="sinusoidal", n_layers=1)
    x = model.embed_tokens(IDS)
    expected = x * math.sqrt(64) + sinusoids(torch.arange(12), 64)
    torch.testing.assert_close(model.position.add(x, torch.arange(12)[None]), expected, rtol=1e-6, atol=1e-6)


def test_a_learned_position_is_added_to_its_token_alone(build_llama: Build) -> None:
    model = build_llama(position="learned")
    model.hidden(IDS).sum().backward()
    used = model.position.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [True] * 12 + [False] * (model.config.max_seq_len - 12)


@pytest.mark.parametrize(("scale", "divisor"), [("1", 1.0), ("1/d", 16.0)])
def test_scores_are_scaled_as_the_config_says(build_llama: Build, scale: str, divisor: float) -> None:
    scaled, plain = build_llama(score_scale=scale), build_llama()
    with torch.no_grad():
        for block in plain.layers:
            block.self_attn.q_proj.weight.mul_(4.0 / divisor)
    torch.testing.assert_close(scaled(IDS), plain(IDS), rtol=1e-3, atol=1e-4)


def test_without_positions_earlier_tokens_are_a_bag(build_llama: Build) -> None:
    model = build_llama(position="none", n_layers=1)
    order = torch.tensor([3, 1, 0, 2, *range(4, 12)])
    torch.testing.assert_close(model(IDS)[:, 4:], model(IDS[:, order])[:, 4:], rtol=1e-4, atol=1e-4)
    llama = build_llama(n_layers=1)
    assert (llama(IDS)[:, 4:] - llama(IDS[:, order])[:, 4:]).abs().max() > 1e-2
