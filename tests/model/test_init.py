"""Starting weights: their spread, their seed, and the loss they start from. math.md 1.10."""

import math
from dataclasses import replace

import pytest
import torch

from puna.arch.config import ModelConfig
from puna.compression.low_rank import compress_low_rank, decompose_groups
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.model.loss import token_nats
from puna.model.surgery import get_linear


def test_the_first_loss_of_an_untied_head_is_ln_v_plus_half_its_logit_variance(tiny_config: ModelConfig) -> None:
    config = replace(tiny_config, vocab_size=4096, dim=256, head_dim=64, tied_embeddings=False)
    model = initialise(Llama(config), seed=0)
    ids = torch.randint(0, 4096, (4, 129), generator=torch.Generator().manual_seed(1))
    hidden = model.hidden(ids[:, :-1])
    expected = math.log(4096) + 256 * 0.02**2 / 2
    assert float(token_nats(model.lm_head, hidden, ids[:, 1:]).mean()) == pytest.approx(expected, abs=0.1)


def test_what_writes_to_the_stream_starts_smaller_and_norms_start_at_one(tiny_config: ModelConfig) -> None:
    model = initialise(Llama(replace(tiny_config, n_layers=8, tied_embeddings=False)), seed=0)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        expected = 0.02 / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.05), name
        assert abs(float(weight.detach().mean())) < 5 * expected / math.sqrt(weight.numel()), name


def test_the_product_of_fresh_factors_starts_as_the_weight_it_stands_for(tiny_config: ModelConfig) -> None:
    model = Llama(replace(tiny_config, dim=256, head_dim=64, ffn_dim=512, tied_embeddings=False))
    compress_low_rank(
        model, decompose_groups(model), {"layers.0.mlp.gate_proj+up_proj": 64, "layers.0.mlp.down_proj": 48}
    )
    initialise(model, seed=0)
    layers = tiny_config.n_layers
    for name, expected in {"gate_proj": 0.02, "up_proj": 0.02, "down_proj": 0.02 / math.sqrt(2 * layers)}.items():
        made = get_linear(model, f"layers.0.mlp.{name}").dense_weight()
        assert float(made.std()) == pytest.approx(expected, rel=0.1), name


def test_the_seed_alone_decides_the_weights(tiny_config: ModelConfig) -> None:
    torch.manual_seed(1)
    first = initialise(Llama(tiny_config), seed=5)
    torch.manual_seed(2)
    again, other = initialise(Llama(tiny_config), seed=5), initialise(Llama(tiny_config), seed=6)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, c)


def test_initialising_leaves_the_global_generator_alone(tiny_config: ModelConfig) -> None:
    model = Llama(tiny_config)
    before = torch.get_rng_state()
    initialise(model, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
