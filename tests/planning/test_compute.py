from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from puna.arch.attention_pattern import Blocks, Causal, Hybrid, SlidingWindow
from puna.arch.modules import LINEARS, linear_paths
from puna.arch.presets import PRESETS
from puna.model.linears.adapter import LoraOverride, LoraSettings
from puna.model.linears.lora import lora_linear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, replace_linear
from puna.planning.compute import forward_flops, training_flops
from puna.planning.counting import attended_pairs, linear_parameters, lora_parameters
from puna.planning.settings import FullTraining, Inference, LoraTraining, Settings

TINY = PRESETS["tiny"].config
EIGHT = PRESETS["llama-3-8b"].config
BATCH, SEQ = 2, 48


def counted(step):
    """(products of Linears, products of attention) by torch's own counter, attention in its plain form."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    counts = {str(operation): flops for operation, flops in counter.get_flop_counts()["Global"].items()}
    attention = counts.pop("aten.bmm")
    return sum(counts.values()), attention


def ids():
    return torch.randint(0, TINY.vocab_size, (BATCH, SEQ), generator=torch.Generator().manual_seed(0))


def test_forward_equals_torchs_counter():
    planned = forward_flops(TINY, SEQ, BATCH, full_square=True)
    linear, attention = counted(lambda: Llama(TINY)(ids()))
    assert linear == sum(planned.linears.values()) + planned.head
    assert attention == planned.attention


def test_training_equals_torchs_counter():
    model, planned = Llama(TINY), forward_flops(TINY, SEQ, BATCH, full_square=True)
    linear, attention = counted(lambda: model(ids()).sum().backward())
    assert linear == 3 * (sum(planned.linears.values()) + planned.head)
    assert attention == 3 * planned.attention


@pytest.mark.parametrize("kind", [{}, {"magnitudes": True}, {"start": "olora"}], ids=["lora", "dora", "olora"])
def test_lora_training_equals_torchs_counter(kind):
    model = Llama(TINY).requires_grad_(False)
    made = LoraSettings(rank=4, alpha=4, targets=LINEARS, overrides=(LoraOverride(target="up_proj", rank=3),), **kind)
    for path in list(linear_paths(TINY)):
        replace_linear(model, path, lora_linear(get_linear(model, path), made, path=path))
    model.embed_tokens.weight.requires_grad_(True)  # so that the first layer, too, forms its input's gradient
    model.lm_head = torch.nn.Linear(TINY.dim, TINY.vocab_size, bias=False).requires_grad_(False)
    linear, attention = counted(lambda: model(ids()).sum().backward())
    method = LoraTraining(rank=4, ranks={"up_proj": 3}, magnitudes="magnitudes" in kind, starts="start" in kind)
    planned = training_flops(TINY, settings(method))
    square, causal = (forward_flops(TINY, SEQ, BATCH, full_square=whole).attention for whole in (True, False))
    assert linear + attention == planned + 3 * (square - causal)


@pytest.mark.parametrize("tokens", [1, 2, 17, 64])
@pytest.mark.parametrize(
    "pattern",
    [Causal(), SlidingWindow(window=9, sinks=2), Blocks(size=8, shifted=True), Hybrid(window=9, windows=1)],
    ids=repr,
)
def test_attention_equals_a_count_of_pairs(tokens, pattern):
    config, pairs = replace(TINY, pattern=pattern), 0
    for layer in range(config.n_layers):
        parts = config.pattern.of_layer(layer).parts
        for part in parts:
            seen = sum(part.allows(query, key) for query in range(tokens) for key in range(tokens))
            pairs += seen * config.n_heads // len(parts)
    assert attended_pairs(config, tokens) == pairs
    assert forward_flops(config, tokens).attention == 4 * config.head_dim * pairs


def test_a_batch_costs_its_sequences():
    assert forward_flops(TINY, SEQ, 3).total == 3 * forward_flops(TINY, SEQ).total


@pytest.mark.parametrize(("tokens", "giga"), [(2048, 15.546), (8192, 17.157)])
def test_8b_costs_what_the_reference_says(tokens, giga):
    total = forward_flops(EIGHT, tokens).total
    assert total % tokens == 0
    assert total / tokens / 1e9 == pytest.approx(giga, abs=5e-4)
    assert training_flops(EIGHT, settings(FullTraining(), tokens, 1)) == 3 * total


def test_recomputing_repeats_the_layers_but_not_the_head():
    plain = settings(FullTraining())
    extra = training_flops(TINY, replace(plain, checkpointing=True)) - training_flops(TINY, plain)
    forward = forward_flops(TINY, SEQ, BATCH)
    assert extra == forward.total - forward.head


def test_lora_skips_the_gradients_of_frozen_weights():
    tokens = 2048
    flops = training_flops(EIGHT, settings(LoraTraining(rank=16), tokens, 1))
    frozen = 4 * (linear_parameters(EIGHT) + EIGHT.vocab_size * EIGHT.dim)
    attention = 3 * forward_flops(EIGHT, tokens).attention // tokens
    adapters = 6 * lora_parameters(EIGHT, 16)
    assert flops == tokens * (frozen + attention + adapters)
    assert [round(part / 1e9, 2) for part in (frozen, attention, adapters)] == [30.02, 1.61, 0.25]


def test_inference_costs_one_forward_pass():
    assert training_flops(TINY, settings(Inference())) == forward_flops(TINY, SEQ, BATCH).total


def settings(method, seq=SEQ, batch=BATCH):
    return Settings(method=method, seq=seq, batch=batch, base="float32")
