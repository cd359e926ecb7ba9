"""Low rank: the laws of Eckart & Young, of the whitened optimum, and what both cost a real model. compression.md 1."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.compression.allocation import uniform_ranks
from puna.compression.low_rank import (
    compress_low_rank,
    decompose,
    decompose_linears,
    decompose_outputs,
    decompose_whitened,
)
from puna.compression.rounding import round_linears
from puna.compression.sizes import linear_bytes
from puna.compression.statistics import collect_statistics
from puna.model.llama import Llama
from puna.model.loss import token_nats
from puna.model.surgery import get_linear, named_linears

SHAPES = [(24, 40), (40, 24), (32, 32)]
T64 = 1e-10


def problem(shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and correlated inputs X (d_in, tokens), float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(*shape, generator=generator, dtype=torch.float64)
    mixing = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, -2, shape[1], dtype=torch.float64)[:, None]
    return weight, mixing @ (scales * torch.randn(shape[1], 300, generator=generator, dtype=torch.float64))


def output_error(weight: Tensor, product: Tensor, x: Tensor) -> float:
    return float(((weight - product) @ x).square().sum())


def product(weight: Tensor, rank: int, gram: Tensor | None = None) -> Tensor:
    left, right = decompose(weight, gram).factors(rank)
    return left @ right


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_squared_error_of_a_truncated_svd_is_the_sum_of_the_dropped_squares(shape: tuple[int, int]) -> None:
    weight, _ = problem(shape)
    spectrum, values = decompose(weight), torch.linalg.svdvals(weight)
    for rank in (1, 7, 20, 24):
        left, right = spectrum.factors(rank)
        measured = float((weight - left @ right).square().sum())
        assert measured == pytest.approx(spectrum.loss(rank), rel=T64, abs=T64 * float(weight.square().sum()))
        assert spectrum.loss(rank) == pytest.approx(float(values[rank:].square().sum()), rel=T64)


def test_plain_factors_share_the_singular_values_evenly() -> None:
    left, right = decompose(problem((24, 40))[0]).factors(10)
    assert relative(left.T @ left, right @ right.T) < T64


@pytest.mark.parametrize("shape", SHAPES)
def test_the_output_error_of_a_whitened_factorisation_is_the_sum_of_the_dropped_eigenvalues(
    shape: tuple[int, int],
) -> None:
    weight, x = problem(shape)
    spectrum, total = decompose(weight, x @ x.T), float((weight @ x).square().sum())
    for rank in (1, 7, 20, 24):
        left, right = spectrum.factors(rank)
        measured = output_error(weight, left @ right, x)
        assert measured == pytest.approx(spectrum.loss(rank), rel=1e-9, abs=1e-12 * total)


@pytest.mark.parametrize("shape", SHAPES)
def test_output_pca_is_svd_llm_whitening_by_a_cholesky_factor(shape: tuple[int, int]) -> None:
    weight, x = problem(shape)
    root = torch.linalg.cholesky(x @ x.T)
    P, s, Qt = torch.linalg.svd(weight @ root, full_matrices=False)
    for rank in (3, 12):
        by_cholesky = torch.linalg.solve_triangular(root, (P[:, :rank] * s[:rank]) @ Qt[:rank], upper=False, left=False)
        assert relative(product(weight, rank, x @ x.T), by_cholesky) < 1e-8


@pytest.mark.parametrize("shape", SHAPES)
def test_wide_and_tall_weights_agree_with_both_forms_of_the_solver(shape: tuple[int, int]) -> None:
    weight, x = problem(shape)
    gram, rank = x @ x.T, 9
    outputs = torch.linalg.eigh(weight @ gram @ weight.T)[1][:, -rank:]
    wide = outputs @ outputs.T @ weight  # the form for d_out <= d_in, right for every shape
    values, vectors = torch.linalg.eigh(gram)
    root, J = (vectors * values.sqrt()) @ vectors.T, weight.T @ weight
    inner_values, inner = torch.linalg.eigh(root @ J @ root)
    Q, inverse = inner[:, -rank:], inner_values[-rank:].reciprocal()
    tall = (weight @ root @ Q * inverse) @ (Q.T @ root @ J)  # the form for d_out > d_in
    assert relative(product(weight, rank, gram), wide) < 1e-8
    assert relative(product(weight, rank, gram), tall) < 1e-8


@pytest.mark.parametrize("shape", SHAPES)
def test_duplicated_input_channels_still_meet_the_law(shape: tuple[int, int]) -> None:
    weight, x = problem(shape)
    half = shape[1] // 2
    x[half : 2 * half] = x[:half]
    gram = x @ x.T
    assert int(torch.linalg.matrix_rank(gram)) <= shape[1] - half
    spectrum, total = decompose(weight, gram), float((weight @ x).square().sum())
    for rank in (1, 7, 20, 24):
        left, right = spectrum.factors(rank)
        measured = output_error(weight, left @ right, x)
        assert measured == pytest.approx(spectrum.loss(rank), rel=1e-9, abs=1e-12 * total)


@pytest.mark.parametrize("share", [0.0, 1e-9, 1e-6, 1e-3])
def test_a_tall_weight_that_is_singular_or_nearly_so_still_meets_the_law(share: float) -> None:
    weight, x = problem((40, 24))
    weight[:, 12:] = weight[:, :12] + share * weight[:, 12:]
    spectrum, total = decompose(weight, x @ x.T), float((weight @ x).square().sum())
    for rank in (1, 7, 12, 20, 24):
        left, right = spectrum.factors(rank)
        measured = output_error(weight, left @ right, x)
        assert measured == pytest.approx(spectrum.loss(rank), rel=1e-9, abs=1e-12 * total)
    assert relative(product(weight, 24, x @ x.T), weight) < T64


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rank_that_is_asked_for_forms_its_components_alone(shape: tuple[int, int]) -> None:
    weight, x = problem(shape)
    gram, whole = x @ x.T, decompose(weight, x @ x.T)
    first = decompose_whitened(weight, gram, rank=9)
    assert (first.left_oK.shape, first.right_Ki.shape) == ((shape[0], 9), (9, shape[1]))
    assert torch.equal(first.energy_K, whole.energy_K)
    assert relative(first.left_oK @ first.right_Ki, product(weight, 9, gram)) < T64
    if shape[0] <= shape[1]:
        of_outputs = decompose_outputs(weight, weight @ gram @ weight.T, rank=9)
        assert relative(of_outputs.left_oK @ of_outputs.right_Ki, product(weight, 9, gram)) < 1e-8


@pytest.mark.parametrize("tokens", [0, 5, 300])
@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_returns_the_weight_whatever_the_inputs(shape: tuple[int, int], tokens: int) -> None:
    weight, x = problem(shape)
    x = x[:, :tokens]
    assert relative(product(weight, min(shape), x @ x.T), weight) < T64
    assert relative(product(weight, min(shape)), weight) < T64


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 20), st.integers(0, 999))
def test_the_loss_never_grows_with_the_rank_and_no_method_beats_whitening_on_the_inputs(
    out: int, into: int, tokens: int, seed: int
) -> None:
    weight, x = problem((out, into), seed)
    x = x[:, :tokens]
    spectrum = decompose(weight, x @ x.T)
    losses = [spectrum.loss(rank) for rank in range(min(out, into) + 1)]
    assert losses == sorted(losses, reverse=True)
    total = float((weight @ x).square().sum())
    assert losses[0] == pytest.approx(total, rel=1e-9)
    for rank, loss in enumerate(losses):
        assert loss <= output_error(weight, product(weight, rank), x) + 1e-9 * total


@pytest.mark.parametrize("shape", SHAPES)
def test_a_loud_channel_is_met_by_float64_grams_and_missed_by_a_float32_output_gram(shape: tuple[int, int]) -> None:
    weight, x = (tensor.float() for tensor in problem(shape))
    x[0] *= 3000
    rank, W, X = 16, weight.double(), x.double()
    best = float(torch.linalg.svdvals(W @ X)[rank:].square().sum())
    chunked = sum((part @ part.T).double() for part in x.split(100, dim=1))  # as collect_statistics sums
    for gram, tolerance in ((X @ X.T, 1e-9), (chunked, 1e-8)):
        assert abs(output_error(W, product(W, rank, gram), X) / best - 1) < tolerance
    y = weight @ x
    top = torch.linalg.eigh(y @ y.T)[1][:, -rank:].double()
    assert output_error(W, top @ top.T @ W, X) / best - 1 > 1e-3


@pytest.mark.parametrize("whitened", [False, True])
def test_full_rank_reproduces_the_model(tiny: Llama, whitened: bool) -> None:
    ids = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(1))
    expected = tiny(ids).detach()
    grams = collect_statistics(tiny, [ids]).grams if whitened else None
    ranks = {path: min(linear.in_features, linear.out_features) for path, linear in named_linears(tiny)}
    compress_low_rank(tiny, decompose_linears(tiny, grams), ranks)
    assert relative(tiny(ids).detach(), expected) < 1e-5


def test_one_decomposition_serves_every_size_and_the_report_counts_what_is_stored(tiny: Llama) -> None:
    spectra = dict(decompose_linears(tiny))
    dense = linear_bytes(tiny)
    for keep in (0.9, 0.6, 0.3):
        model = copy.deepcopy(tiny)
        report = compress_low_rank(model, spectra.items(), uniform_ranks(model.config, keep))
        assert report.bytes_before == dense
        assert report.bytes_after == linear_bytes(model) <= keep * dense
        assert report.ranks == uniform_ranks(model.config, keep)
        stored = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in tiny.parameters())
        assert 4 * stored == report.bytes_after - report.bytes_before
        for weight in model.parameters():
            assert weight.is_contiguous()
    assert linear_bytes(tiny) == dense


def test_factors_take_the_models_type_and_share_no_memory_with_the_spectrum(tiny: Llama) -> None:
    model, path = tiny.double(), "layers.1.mlp.down_proj"
    spectra = dict(decompose_linears(model))
    compress_low_rank(model, spectra.items(), {path: 64})
    factors = get_linear(model, path)
    assert factors.U.dtype == torch.float64
    spectra[path].left_oK.zero_()
    assert factors.U.detach().abs().sum() > 0
    assert isinstance(get_linear(model, "layers.0.mlp.down_proj"), torch.nn.Linear)


def window_nats(model: Llama, windows: Tensor) -> Tensor:
    """Mean nats of each window, float64."""
    with torch.inference_mode():
        parts = [token_nats(model.lm_head, model.hidden(ids[:, :-1]), ids[:, 1:]) for ids in windows.split(20)]
    return torch.cat(parts).double().mean(1)


def mean_and_half_interval(values: Tensor) -> tuple[float, float]:
    """Mean and half of its 95 % interval over windows."""
    return float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5


def real_model(folder: Path) -> Llama:
    config = ModelConfig(
        vocab_size=4096, dim=256, n_layers=6, n_heads=8, n_kv_heads=2, head_dim=32, ffn_dim=704,
        max_seq_len=512, rope_theta=10_000.0, norm_eps=1e-6, tied_embeddings=True,
    )  # fmt: skip
    model = Llama(config)
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    assert set(model.load_state_dict(tensors, strict=False).missing_keys) <= {"lm_head.weight"}
    return model.eval()


@pytest.fixture(scope="module")
def real(shared_data: Path) -> tuple[Llama, Tensor, Tensor]:
    """The trained 5 M parameter model, calibration windows and held-out windows of 256 targets."""
    folder = shared_data / "checkpoints" / "small" / "base"
    text = (shared_data / "texts" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def windows(part: str, length: int, count: int) -> Tensor:
        ids = torch.tensor(tokenizer.encode(part).ids)
        return ids[: len(ids) // length * length].view(-1, length)[:count]

    return real_model(folder), windows(text[800_000:1_000_000], 512, 16), windows(text[1_000_000:], 257, 20)


def test_whitened_adds_fewer_nats_than_plain_to_a_real_model_at_every_size(real: tuple[Llama, Tensor, Tensor]) -> None:
    model, calibration, held_out = real
    grams = collect_statistics(model, calibration.split(8)).grams
    spectra = {"plain": dict(decompose_linears(model)), "whitened": dict(decompose_linears(model, grams))}
    dense = window_nats(model, held_out)
    for keep in (0.9, 0.6):
        added = {}
        for method, components in spectra.items():
            small = copy.deepcopy(model)
            report = compress_low_rank(small, components.items(), uniform_ranks(model.config, keep))
            assert report.bytes_after <= keep * report.bytes_before
            added[method] = window_nats(small, held_out) - dense
        gain, half = mean_and_half_interval(added["plain"] - added["whitened"])
        assert gain - half > 0


def test_int8_adds_at_most_a_hundredth_of_a_nat_to_a_real_model(real: tuple[Llama, Tensor, Tensor]) -> None:
    model, _, held_out = real
    held_out = held_out[::5]  # without instructions for it an integer product takes thirty times a float one's time
    rounded = copy.deepcopy(model)
    round_linears(rounded, "int8")
    mean, half = mean_and_half_interval(window_nats(rounded, held_out) - window_nats(model, held_out))
    assert mean + half < 0.01
