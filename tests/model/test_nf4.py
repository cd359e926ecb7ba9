"""Nf4Linear: the product with the weight that its codes stand for, a gradient for the input, no dense weight kept."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from puna.adaptation.merge import merge
from puna.adaptation.targets import attach, named_loras
from puna.arch.modules import LINEARS
from puna.model.batch import Batch
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.kind import dense_weight
from puna.model.linears.nf4 import Nf4Linear
from puna.model.llama import Llama
from puna.model.surgery import named_linears, replace_linears
from puna.planning.memory import nf4_bytes
from puna.training.step import train_step

IDS = torch.arange(40).view(2, 20)
LORA = LoraSettings(rank=4, alpha=8.0, targets=LINEARS)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def rounded(tiny: Llama) -> Llama:
    """The tiny model with every block Linear in NF4."""
    replace_linears(tiny, LINEARS, lambda _, old: Nf4Linear.from_dense(dense_weight(old)))
    return tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(24, 40), (7, 9), (1, 1), (64, 256)])
def test_the_product_is_that_with_the_dense_weight_in_the_inputs_type(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    linear, x = Nf4Linear.from_dense(gaussian(*shape, seed=1)), gaussian(2, 5, shape[1]).to(dtype)
    y = linear(x)
    assert y.dtype == dtype
    assert torch.equal(y, F.linear(x, linear.dense_weight().to(dtype)))


def test_under_autocast_it_answers_as_a_dense_linear_does() -> None:
    linear, x = Nf4Linear.from_dense(gaussian(24, 40, seed=1)), gaussian(3, 40).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = linear(x), F.linear(x, linear.dense_weight())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_the_way_back_reaches_the_input_and_keeps_nothing_but_codes() -> None:
    linear, x = Nf4Linear.from_dense(gaussian(256, 512, seed=1)), gaussian(2, 5, 512).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = linear(x)
    upstream = gaussian(2, 5, 256, seed=2)
    y.backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ linear.dense_weight(), rtol=1e-5, atol=1e-4)
    assert sum(tensor.nbytes for tensor in kept) == nf4_bytes(256 * 512)
    assert not list(linear.parameters())


@pytest.mark.parametrize("shape", [(24, 40), (7, 9), (128, 4096), (300, 513)])
def test_it_stores_the_bytes_that_are_planned(shape: tuple[int, int]) -> None:
    buffers = Nf4Linear.from_dense(gaussian(*shape)).state_dict()
    assert sum(value.nbytes for value in buffers.values()) == nf4_bytes(shape[0] * shape[1])
    assert sum(value.untyped_storage().nbytes() for value in buffers.values()) == nf4_bytes(shape[0] * shape[1])


def test_a_large_weight_takes_0_515869_bytes_a_number() -> None:
    linear = Nf4Linear.from_dense(torch.zeros(1024, 4096))
    stored = sum(value.nbytes for value in linear.buffers())
    assert stored == 1024 * 4096 * 0.515869140625 + 4


def trained(model: Llama) -> Llama:
    attach(model, LORA, seed=0)
    with torch.no_grad():
        for number, (_, lora) in enumerate(named_loras(model)):
            lora.B.copy_(0.1 * gaussian(*lora.B.shape, seed=number))
    return model


@torch.no_grad()
def test_a_fresh_adapter_is_the_rounded_base_exactly(rounded: Llama) -> None:
    base = rounded(IDS)
    attach(rounded, LORA, seed=0)
    assert torch.equal(rounded(IDS), base)


@torch.no_grad()
def test_merged_is_the_dequantised_base_plus_the_update(rounded: Llama) -> None:
    bases = {path: dense_weight(linear) for path, linear in named_linears(rounded)}
    attached = trained(rounded)(IDS)
    updates = {path: lora.scale * lora.B @ lora.A for path, lora in named_loras(rounded)}
    merge(rounded)
    for path, linear in named_linears(rounded):
        assert torch.equal(dense_weight(linear), bases[path] + updates[path])
    assert (rounded(IDS) - attached).abs().max() <= 1e-5 * attached.abs().max()


@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_changes_the_adapter_and_nothing_else(
    build_llama: Callable[..., Llama], stream: torch.dtype, precision: str
) -> None:
    model = build_llama().to(stream)
    replace_linears(model, LINEARS, lambda _, old: Nf4Linear.from_dense(dense_weight(old)))
    trained(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.rpartition(".")[2] for name in adapters} == {"A", "B"}
    optimizer = torch.optim.AdamW(adapters.values(), lr=1e-2)
    batch = Batch(ids_BT=IDS, targets_BT=IDS.roll(-1, 1))
    outcome = train_step(model, optimizer, [batch], rate=1e-2, clip=1.0, precision=precision)
    assert outcome is not None
    assert outcome.is_applied
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in adapters), name
    assert {weight.dtype for weight in adapters.values()} == {torch.float32}
    assert {weight.grad.dtype for weight in adapters.values() if weight.grad is not None} == {torch.float32}


def test_the_gradient_of_an_adapter_is_that_beside_the_dequantised_weight(build_llama: Callable[..., Llama]) -> None:
    gradients = []
    for is_dense in (False, True):
        model = build_llama()
        replace_linears(model, LINEARS, lambda _, old: Nf4Linear.from_dense(dense_weight(old)))
        trained(model)
        if is_dense:
            for _, lora in named_loras(model):
                dense = torch.nn.Linear(lora.in_features, lora.out_features, bias=False)
                dense.weight = torch.nn.Parameter(dense_weight(lora.base), requires_grad=False)
                lora.base = dense
        model(IDS).logsumexp(-1).sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max(), name
