"""Layer by layer: the same factors as from the whole model at once, whatever the shapes, and errors that name the matrix."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from puna.compression.allocation import uniform_ranks
from puna.compression.layerwise import Factors, embed, factor_layer
from puna.compression.statistics import collect_statistics, too_few_tokens
from puna.errors import BadData
from puna.jobs.factoring import factorise
from puna.model.llama import Llama
from puna.model.surgery import get_linear, named_linears

KEEP = 0.5


def windows(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 512, (1, length), generator=generator) for length in lengths]


def walk(model: Llama, parts: list[Tensor], keep: float = KEEP) -> dict[str, Factors]:
    stream, ranks, found = embed(model, parts), uniform_ranks(model.config, keep), {}
    for layer in range(model.config.n_layers):
        found |= dict(factor_layer(model, layer, stream, ranks))
    return found


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"ffn_dim": 24},  # down_proj tall, gate and up wide
        {"n_kv_heads": 4, "head_dim": 8},  # o_proj tall, q_proj wide
        {"n_layers": 3, "head_dim": 32, "tied_embeddings": True},  # o_proj wide
    ],
)
@pytest.mark.parametrize("lengths", [(40, 40, 40, 7), (9,)])  # the second leaves every Gram singular
def test_layer_by_layer_equals_the_whole_model_at_once(
    build_llama: Callable[..., Llama], shape: dict[str, int], lengths: tuple[int, ...]
) -> None:
    model, parts = build_llama(**shape).double(), windows(*lengths)
    whole = copy.deepcopy(model)
    ranks = factorise(whole, "whitened", KEEP, "uniform", parts).ranks
    found = walk(model, parts)
    assert found.keys() == ranks.keys()
    grams = collect_statistics(model, parts).grams
    for path, (U, V) in found.items():
        assert U.shape[1] == len(V) == ranks[path]
        assert U.is_contiguous()
        assert V.is_contiguous()
        weight, expected = get_linear(model, path).weight.detach(), get_linear(whole, path).dense_weight().double()
        errors = [((weight - each) @ grams[path] @ (weight - each).T).trace() for each in (U @ V, expected)]
        assert float(errors[0]) == pytest.approx(float(errors[1]), rel=1e-6, abs=1e-6 * float(grams[path].trace()))
        if len(lengths) > 1:  # else components of no energy are free to turn
            assert relative(U @ V, expected) < 1e-5


def test_a_float32_model_loses_no_more_than_the_whole_model_at_once(tiny: Llama) -> None:
    parts = windows(64, 64, 64)
    wide, whole = copy.deepcopy(tiny).double(), copy.deepcopy(tiny)
    factorise(whole, "whitened", KEEP, "uniform", parts)
    grams = collect_statistics(wide, parts).grams
    for path, (U, V) in walk(tiny, parts).items():
        assert U.dtype == torch.float32
        weight = get_linear(wide, path).weight.detach()
        products = (U.double() @ V.double(), get_linear(whole, path).dense_weight().double())
        errors = [float(((weight - each) @ grams[path] @ (weight - each).T).trace()) for each in products]
        assert errors[0] == pytest.approx(errors[1], rel=1e-5)


def test_the_stream_is_what_the_dense_model_computes_and_the_model_stays_as_it_was(tiny: Llama) -> None:
    parts = windows(20, 11)
    before = dict(named_linears(tiny))
    stream = embed(tiny, parts)
    for layer in range(tiny.config.n_layers):
        list(factor_layer(tiny, layer, stream, uniform_ranks(tiny.config, KEEP)))
    for x_TD, ids in zip(stream.windows(), parts, strict=True):
        assert relative(tiny.norm(x_TD).detach(), tiny.hidden(ids)[0].detach()) < 1e-5
    assert dict(named_linears(tiny)) == before


def test_a_loud_output_of_down_proj_hides_no_quiet_ones(tiny: Llama) -> None:
    """The squares of float32 outputs, summed in float32, would: compression.md 1.2."""
    path, parts, rank = "layers.0.mlp.down_proj", windows(80, 80, 80), 24
    with torch.no_grad():
        get_linear(tiny, "layers.0.mlp.up_proj").weight[0] *= 3000
    wide = copy.deepcopy(tiny).double()
    weight, gram = get_linear(wide, path).weight.detach(), collect_statistics(wide, parts).grams[path]
    best = float(torch.linalg.eigvalsh(weight @ gram @ weight.T).flip(0)[rank:].sum())
    U, V = dict(factor_layer(tiny, 0, embed(tiny, parts), {path: rank}))[path]
    rest = weight - U.double() @ V.double()
    assert float((rest @ gram @ rest.T).trace()) == pytest.approx(best, rel=1e-5)


def test_leaving_off_in_the_middle_puts_every_linear_back(tiny: Llama) -> None:
    before, calls = dict(named_linears(tiny)), iter((None, KeyboardInterrupt))

    def passed() -> None:
        if error := next(calls):
            raise error

    with pytest.raises(KeyboardInterrupt):
        list(factor_layer(tiny, 0, embed(tiny, windows(9, 9, 9)), uniform_ranks(tiny.config, KEEP), passed))
    assert dict(named_linears(tiny)) == before


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_named_before_its_layer_is_run(tiny: Llama, value: float) -> None:
    parts, path = windows(9), "layers.1.mlp.up_proj"
    with torch.no_grad():
        get_linear(tiny, path).weight[3, 1] = value
    stream = embed(tiny, parts)
    list(factor_layer(tiny, 0, stream, {}))
    kept = stream.x_ND.clone()
    with pytest.raises(BadData, match=f"{path}: expected finite weights"):
        list(factor_layer(tiny, 1, stream, {}))
    assert torch.equal(stream.x_ND, kept)
    with pytest.raises(BadData, match=f"{path}: expected finite weights"):
        factorise(tiny, "whitened", KEEP, "uniform", parts)


def test_inputs_that_are_not_finite_are_named(tiny: Llama) -> None:
    with torch.no_grad():
        tiny.embed_tokens.weight.fill_(torch.inf)
    with pytest.raises(BadData, match=r"finite inputs of layers.0.self_attn.q_proj"):
        list(factor_layer(tiny, 0, embed(tiny, windows(4)), {}))
    with pytest.raises(BadData, match="at least one window"):
        embed(tiny, [])


def test_too_few_tokens_are_said(tiny: Llama) -> None:
    widest = tiny.config.ffn_dim
    assert too_few_tokens(tiny.config, widest) is None
    assert "tenth" in str(too_few_tokens(tiny.config, widest - 1, damped=True))
    assert f"{widest - 1:,} tokens for inputs up to {widest:,} wide" in str(too_few_tokens(tiny.config, widest - 1))
