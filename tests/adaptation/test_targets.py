"""LoRA in a model: it starts as nothing, only it trains, and it comes out again as it went in."""

from dataclasses import replace

import pytest
import torch

from puna.adaptation.merge import merge
from puna.adaptation.targets import adapter_of, attach, attach_adapter, detach, named_loras
from puna.arch.modules import ADAPTABLE, linear_shapes, match_linears, target_paths
from puna.errors import CheckpointMismatch, UsageError
from puna.model.linears.adapter import LoraOverride, LoraSettings

IDS = torch.arange(40).view(2, 20)


def settings(targets="all", rank=4, alpha=8.0):
    return LoraSettings(rank=rank, alpha=alpha, targets=match_linears(targets))


def randomise(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, lora in named_loras(model):
            lora.B.copy_(torch.empty(lora.B.shape).normal_(generator=generator))


@pytest.mark.parametrize("targets", ["all", "attention", "mlp", "q_proj,down_proj"])
def test_a_fresh_adapter_is_the_base_exactly(tiny, targets):
    with torch.no_grad():
        before = tiny(IDS)
        attach(tiny, settings(targets), seed=0)
        assert torch.equal(tiny(IDS), before)


@pytest.mark.parametrize("targets", ["all", "q_proj,v_proj"])
def test_only_the_adapters_tensors_train(tiny, targets):
    attach(tiny, settings(targets), seed=0)
    shapes = linear_shapes(tiny.config)
    expected = tiny.config.n_layers * sum(4 * sum(shapes[name]) for name in match_linears(targets))
    trainable = {name: weight for name, weight in tiny.named_parameters() if weight.requires_grad}
    assert all(name.endswith((".A", ".B")) for name in trainable)
    assert sum(weight.numel() for weight in trainable.values()) == expected
    frozen = {name: weight.clone() for name, weight in tiny.named_parameters() if name not in trainable}
    randomise(tiny)
    tiny(IDS).square().mean().backward()
    torch.optim.SGD(tiny.parameters(), lr=0.1).step()
    after = dict(tiny.named_parameters())
    assert all(weight.grad is not None and weight.grad.any() for weight in trainable.values())
    assert all(torch.equal(after[name], weight) and after[name].grad is None for name, weight in frozen.items())


def test_the_seed_alone_decides_the_start(build_llama):
    adapters = []
    for seed, noise in ((3, 1), (3, 2), (4, 1)):
        model = build_llama()
        torch.manual_seed(noise)
        attach(model, settings(), seed)
        adapters.append(adapter_of(model).tensors)
    first, same, other = adapters
    assert all(torch.equal(first[path][0], same[path][0]) for path in first)
    assert not any(torch.equal(first[path][0], other[path][0]) for path in first)


def test_an_adapter_comes_out_as_it_went_in(build_llama):
    model, other = build_llama(), build_llama()
    attach(model, settings("mlp", rank=3, alpha=7.0), seed=0)
    randomise(model)
    adapter = adapter_of(model, base_sha256="x")
    attach_adapter(other, adapter)
    found = adapter_of(other, base_sha256="x")
    assert found.settings == settings("mlp", rank=3, alpha=7.0)
    for path, pair in adapter.tensors.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, found.tensors[path], strict=True))
    with torch.no_grad():
        assert torch.equal(model(IDS), other(IDS))
    adapter.tensors["layers.0.mlp.up_proj"][0].zero_()
    assert found.tensors["layers.0.mlp.up_proj"][0].any()


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("changes", [{}, {"rank_stabilized": True}])
def test_what_began_as_a_part_of_the_base_comes_out_as_plain_lora_of_twice_the_rank(build_llama, start, changes):
    model, other = build_llama(), build_llama()
    overrides = (LoraOverride(target="o_proj", rank=2), LoraOverride(target="down_proj", alpha=3.0))
    started = replace(settings("attention,mlp"), start=start, overrides=overrides, **changes)
    with torch.no_grad():
        before = model(IDS)
        attach(model, started, seed=0)
        assert torch.equal(model(IDS), before)
        for _, lora in named_loras(model):
            lora.B.add_(torch.empty(lora.B.shape).normal_(generator=torch.Generator().manual_seed(7)) * 0.1)
        adapter = adapter_of(model)
        assert (adapter.settings.start, adapter.settings.rank, adapter.settings.rank_of("x.o_proj")) == ("zeros", 8, 4)
        attach_adapter(other, adapter)
        after = model(IDS)
        torch.testing.assert_close(other(IDS), after, rtol=1e-5, atol=1e-5)
        assert (after - before).abs().max() > 0.01 * before.abs().max()


@pytest.mark.parametrize("tied", [False, True])
def test_every_place_takes_an_adapter_and_gives_the_base_back(build_llama, tied):
    model = build_llama(tied_embeddings=tied)
    with torch.no_grad():
        before = model(IDS)
    every = replace(settings(), targets=ADAPTABLE)
    attach(model, every, seed=0)
    randomise(model)
    with torch.no_grad():
        for _, lora in named_loras(model):
            lora.A.add_(0.01)
        assert not torch.equal(model(IDS), before)
    assert [path for path, _ in named_loras(model)] == list(target_paths(model.config, ADAPTABLE))
    assert {name.rpartition(".")[2] for name, weight in model.named_parameters() if weight.requires_grad} == {"A", "B"}
    detach(model)
    assert not list(named_loras(model))
    assert (model.lm_head.weight is model.embed_tokens.weight) is tied
    with torch.no_grad():
        assert torch.equal(model(IDS), before)


def test_a_merge_beside_a_tied_table_unties_it_and_leaves_the_other_side(build_llama):
    for name in ("embed_tokens", "lm_head"):
        model = build_llama(tied_embeddings=True)
        table = model.embed_tokens.weight.detach().clone()
        attach(model, replace(settings(), targets=(name,)), seed=0)
        with torch.no_grad():
            for _, lora in named_loras(model):
                lora.A.fill_(0.1)
                lora.B.fill_(0.2)
            attached = model(IDS)
            assert merge(model)
            assert not model.config.tied_embeddings
            torch.testing.assert_close(model(IDS), attached, rtol=1e-5, atol=1e-5)
        other = "lm_head" if name == "embed_tokens" else "embed_tokens"
        assert torch.equal(model.get_submodule(other).weight, table)
        assert not torch.equal(model.get_submodule(name).weight, table)


@pytest.mark.parametrize("changes", [{"n_layers": 3}, {"n_layers": 1}, {"ffn_dim": 96}])
def test_an_adapter_of_another_model_is_refused_and_changes_nothing(build_llama, changes):
    model, other = build_llama(), build_llama(**changes)
    attach(model, settings(), seed=0)
    with pytest.raises(CheckpointMismatch, match="layers"):
        attach_adapter(other, adapter_of(model))
    assert not list(named_loras(other))
    assert all(weight.requires_grad for weight in other.parameters())


def test_wrong_settings_are_refused_with_a_way_on(tiny):
    with pytest.raises(UsageError, match="qproj") as caught:
        attach(tiny, replace(settings(), targets=("qproj",)), seed=0)
    assert "did you mean 'q_proj'" in caught.value.hint
    with pytest.raises(UsageError, match=r"lora\.rank"):
        attach(tiny, settings(rank=0), seed=0)
    with pytest.raises(UsageError, match="none"):
        adapter_of(tiny)
    with pytest.raises(UsageError, match=r"at most 32, the smaller side of layers\.0\.self_attn\.k_proj, got 33"):
        attach(tiny, settings(rank=33), seed=0)
    with pytest.raises(UsageError, match="up_prj"):
        attach(tiny, replace(settings(), overrides=(LoraOverride(target="up_prj", rank=2),)), seed=0)
    assert all(weight.requires_grad for weight in tiny.parameters())
    attach(tiny, settings(), seed=0)
    with pytest.raises(UsageError, match="already"):
        attach(tiny, settings(), seed=0)
