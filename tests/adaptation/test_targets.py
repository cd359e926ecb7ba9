"""LoRA in a model: it starts as nothing, only it trains, and it comes out again as it went in."""

from dataclasses import replace

import pytest
import torch

from puna.adaptation.targets import adapter_of, attach, attach_adapter, named_loras
from puna.arch.modules import linear_shapes, match_linears
from puna.errors import CheckpointMismatch, UsageError
from puna.model.linears.lora import LoraSettings

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
    attach(tiny, settings(), seed=0)
    with pytest.raises(UsageError, match="already"):
        attach(tiny, settings(), seed=0)
