"""Merged = attached, whatever the base is made of."""

import pytest
import torch
from torch import nn

from puna.adaptation.merge import merge
from puna.adaptation.targets import attach, named_loras
from puna.arch.modules import LINEARS
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.int8 import Int8WeightLinear
from puna.model.linears.low_rank import LowRankLinear
from puna.model.surgery import named_linears, replace_linears
from tests.fused import fuse

T32 = 1e-5
IDS = torch.arange(40).view(2, 20)


def trained(model, targets=LINEARS):
    attach(model, LoraSettings(rank=4, alpha=8.0, targets=targets), seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, lora in named_loras(model):
            lora.B.copy_(torch.empty(lora.B.shape).normal_(0.0, 0.1, generator=generator))
    return model


@pytest.mark.parametrize("targets", [LINEARS, ("q_proj", "v_proj")])
@torch.no_grad()
def test_merged_equals_attached(tiny, targets):
    base = tiny(IDS)
    attached = trained(tiny, targets)(IDS)
    merge(tiny)
    merged = tiny(IDS)
    assert (merged - attached).abs().max() <= T32 * attached.abs().max()
    assert (merged - base).abs().max() > 1e-2 * base.abs().max()


def test_a_merged_model_is_dense_in_its_own_type_and_trains(tiny):
    trained(tiny.to(torch.bfloat16))
    merge(tiny)
    assert all(type(linear) is nn.Linear for _, linear in named_linears(tiny))
    assert {weight.dtype for weight in tiny.parameters()} == {torch.bfloat16}
    assert all(weight.requires_grad for weight in tiny.parameters())
    assert tiny.lm_head.weight is tiny.embed_tokens.weight


def test_a_fresh_adapter_merges_to_the_base_bit_for_bit(tiny):
    before = {name: weight.clone() for name, weight in tiny.state_dict().items()}
    attach(tiny, LoraSettings(rank=4, alpha=8.0, targets=LINEARS), seed=0)
    merge(tiny)
    after = tiny.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("targets", [LINEARS, ("q_proj", "up_proj")])
@torch.no_grad()
def test_a_base_of_shared_factors_becomes_dense_where_the_adapter_stood(tiny, targets):
    attached = trained(fuse(tiny), targets)(IDS)
    merge(tiny)
    assert (tiny(IDS) - attached).abs().max() <= T32 * attached.abs().max()
    for path, linear in named_linears(tiny):
        assert (type(linear) is nn.Linear) is (path.rpartition(".")[2] in {*targets, "o_proj", "down_proj"})
    attention = tiny.layers[0].self_attn
    assert targets == LINEARS or attention.k_proj.V is attention.v_proj.V


@torch.no_grad()
def test_bases_of_other_kinds_become_dense(tiny):
    def factor(_, old):
        return LowRankLinear(old.weight[:, :8].clone(), old.weight[:8].clone())

    replace_linears(tiny, ("q_proj",), factor)
    replace_linears(tiny, ("up_proj",), lambda _, old: Int8WeightLinear.from_dense(old.weight))
    trained(tiny)
    weights = {path: lora.dense_weight() for path, lora in named_loras(tiny)}
    merge(tiny)
    for path, linear in named_linears(tiny, ("q_proj", "up_proj")):
        assert type(linear) is nn.Linear
        assert torch.equal(linear.weight, weights[path])
