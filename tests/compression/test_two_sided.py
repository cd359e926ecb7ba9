"""Two-sided low rank: its exact loss, both published closed forms, its limits, and that nothing is better in its metric."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from puna.compression.baselines import decompose_cholesky, decompose_scaled
from puna.compression.groups import group_members, linear_groups
from puna.compression.low_rank import Damping, Spectrum, decompose, decompose_group, decompose_groups, decompose_linears
from puna.compression.statistics import collect_two_sided_statistics
from puna.errors import BadData, UsageError
from puna.model.llama import Llama
from puna.model.surgery import get_linear

SHAPES = [(24, 40), (40, 24), (32, 32)]
T64 = 1e-10
NONE = Damping(inputs=0, gradients=0)


def problem(shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight (d_out, d_in), the Gram of its correlated inputs and that of its outputs' gradients, float64."""
    generator = torch.Generator().manual_seed(seed)

    def gram(width: int) -> Tensor:
        scales = torch.logspace(0, -2, width, dtype=torch.float64)[:, None]
        parts = scales * torch.randn(width, 300, generator=generator, dtype=torch.float64)
        mixed = torch.randn(width, width, generator=generator, dtype=torch.float64) @ parts
        return mixed @ mixed.T

    weight = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return weight, gram(shape[1]), gram(shape[0])


def damped(gram: Tensor, share: float) -> Tensor:
    return gram + share * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def objective(error: Tensor, gram: Tensor, gradient_gram: Tensor) -> float:
    """|H^1/2 (W - W') G^1/2|^2."""
    return float((gradient_gram @ error @ gram * error).sum())


def product(spectrum: Spectrum, rank: int) -> Tensor:
    left, right = spectrum.factors(rank)
    return left @ right


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T


@pytest.mark.parametrize("damping", [None, NONE, Damping(inputs=0.5, gradients=0.01)])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_two_sided_error_is_the_sum_of_the_dropped_eigenvalues(
    shape: tuple[int, int], damping: Damping | None
) -> None:
    weight, gram, gradient_gram = problem(shape)
    shares = (0.1, 0.3) if damping is None else (damping.inputs, damping.gradients)
    spectrum = decompose(weight, gram, gradient_gram, damping)
    metric = damped(gram, shares[0]), damped(gradient_gram, shares[1])
    total = objective(weight, *metric)
    assert spectrum.loss(0) == pytest.approx(total, rel=1e-9)
    for rank in (1, 7, 20, 24):
        measured = objective(weight - product(spectrum, rank), *metric)
        assert measured == pytest.approx(spectrum.loss(rank), rel=1e-9, abs=1e-12 * total)


@pytest.mark.parametrize("shape", SHAPES)
def test_wide_and_tall_weights_agree_with_the_published_closed_forms(shape: tuple[int, int]) -> None:
    weight, gram, gradient_gram = problem(shape)
    A, H, rank = damped(gram, 0.1), damped(gradient_gram, 0.3), 9
    got = product(decompose(weight, gram, gradient_gram), rank)
    root, inverse = roots(H)
    P = torch.linalg.eigh(root @ weight @ A @ weight.T @ root)[1][:, -rank:]
    assert relative(got, inverse @ P @ P.T @ root @ weight) < 1e-8  # the form for d_out <= d_in, right for every shape
    J, (root, _) = weight.T @ H @ weight, roots(A)
    values, Q = torch.linalg.eigh(root @ J @ root)
    Q, values = Q[:, -rank:], values[-rank:]
    assert relative(got, (weight @ root @ Q / values) @ (Q.T @ root @ J)) < 1e-8  # the form for d_out > d_in
    root, inverse = roots(A)
    P, s, Qt = torch.linalg.svd(roots(H)[0] @ weight @ root)
    by_svd = roots(H)[1] @ (P[:, :rank] * s[:rank]) @ Qt[:rank] @ inverse
    assert relative(got, by_svd) < 1e-8


@pytest.mark.parametrize("shape", SHAPES)
def test_with_nothing_known_of_the_gradients_it_is_whitened_and_of_the_inputs_too_plain(shape: tuple[int, int]) -> None:
    weight, gram, _ = problem(shape)
    same_out, same_in = torch.eye(shape[0]).double(), torch.eye(shape[1]).double()
    for rank in (3, 12, 24):
        whitened = product(decompose(weight, gram), rank)
        assert relative(product(decompose(weight, gram, same_out, NONE), rank), whitened) < T64
        plain = product(decompose(weight), rank)
        for spectrum in (
            decompose(weight, same_in, same_out, NONE),
            decompose(weight, same_in, same_out),  # damping scales the identity
            decompose(weight, None, same_out),
        ):
            assert relative(product(spectrum, rank), plain) < T64
    energies = decompose(weight, same_in, same_out, NONE).energy_K
    assert relative(energies, torch.linalg.svdvals(weight).square()) < T64


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_grams_keep_the_law_and_full_rank_returns_the_weight(shape: tuple[int, int]) -> None:
    weight, gram, gradient_gram = problem(shape)
    half_in, half_out = shape[1] // 2, shape[0] // 2
    gram[:, :half_in] = gram[:half_in] = 0
    gradient_gram[:, :half_out] = gradient_gram[:half_out] = 0
    for damping, A in ((None, damped(gram, 0.1)), (Damping(inputs=0, gradients=0.3), gram)):
        spectrum, H = decompose(weight, gram, gradient_gram, damping), damped(gradient_gram, 0.3)
        for rank in (1, 7, 20):
            measured = objective(weight - product(spectrum, rank), A, H)
            assert measured == pytest.approx(spectrum.loss(rank), rel=1e-9, abs=1e-12 * objective(weight, A, H))
        assert relative(product(spectrum, min(shape)), weight) < T64
    nothing = torch.zeros_like(gram), torch.zeros_like(gradient_gram)
    for grams in ((gram, nothing[1]), (nothing[0], gradient_gram), nothing):
        assert relative(product(decompose(weight, *grams), min(shape)), weight) < T64


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_its_loss_never_grows_with_the_rank_and_no_method_has_a_smaller_one(out: int, into: int, seed: int) -> None:
    weight, gram, gradient_gram = problem((out, into), seed)
    A, H = damped(gram, 0.1), damped(gradient_gram, 0.3)
    spectrum, total = decompose(weight, gram, gradient_gram), objective(weight, A, H)
    losses = [spectrum.loss(rank) for rank in range(min(out, into) + 1)]
    assert losses == sorted(losses, reverse=True)
    others = decompose(weight), decompose(weight, gram), decompose_scaled(weight, gram.diagonal().sqrt())
    for rank, loss in enumerate(losses):
        for other in others:
            assert loss <= objective(weight - product(other, rank), A, H) + 1e-9 * total


def test_on_a_hard_matrix_the_metrics_differ_by_orders_of_magnitude() -> None:
    weight, gram, gradient_gram = problem((48, 64))
    A, H = damped(gram, 0.1), damped(gradient_gram, 0.3)
    plain, whitened, two_sided = (
        objective(weight - product(spectrum, 16), A, H)
        for spectrum in (decompose(weight), decompose(weight, gram), decompose(weight, gram, gradient_gram))
    )
    assert plain > 2 * whitened > 2 * two_sided


def test_a_group_is_decomposed_as_the_stack_of_its_members() -> None:
    weights = [problem((size, 40), size)[0] for size in (24, 8, 16)]
    _, gram, gradient_gram = problem((48, 40))
    group = decompose_group(weights, gram, gradient_gram)
    whole = decompose(torch.cat(weights), gram, gradient_gram)
    assert (group.rows, whole.rows) == ((24, 8, 16), (48,))
    Us, V = group.member_factors(11)
    assert [len(U) for U in Us] == [24, 8, 16]
    assert relative(torch.cat([U @ V for U in Us]), product(whole, 11)) < T64
    full = group.member_factors(40)
    for weight, U in zip(weights, full[0], strict=True):
        assert relative(U @ full[1], weight) < T64


def test_members_whose_gradients_are_unrelated_lose_apart_and_the_heavier_one_loses_the_smaller_share() -> None:
    weights = [problem((16, 40), seed)[0] for seed in (1, 2)]
    _, gram, light = problem((16, 40), 3)
    members = list(zip(weights, (light, 1e4 * light), strict=True))
    group = decompose_group(weights, gram, torch.block_diag(*(own for _, own in members)), NONE)
    totals = [objective(weight, gram, own) for weight, own in members]
    for rank in (4, 16, 24):
        Us, V = group.member_factors(rank)
        lost = [objective(weight - U @ V, gram, own) for (weight, own), U in zip(members, Us, strict=True)]
        assert sum(lost) == pytest.approx(group.loss(rank), rel=1e-9, abs=1e-12 * sum(totals))
        assert lost[1] / totals[1] < lost[0] / totals[0]


def test_a_models_linears_and_groups_are_decomposed_by_the_statistics_of_their_names(tiny: Llama) -> None:
    ids = torch.randint(0, 512, (2, 32), generator=torch.Generator().manual_seed(1))
    found = collect_two_sided_statistics(tiny, [ids])
    linears = dict(decompose_linears(tiny, found.grams, found.gradients))
    groups = dict(decompose_groups(tiny, found.grams, found.gradients))
    assert list(groups) == list(linear_groups(tiny.config))
    assert list(linears) == [path for name in groups for path in group_members(name)]
    for name, group in groups.items():
        paths = group_members(name)
        if len(paths) == 1:
            assert torch.equal(group.energy_K, linears[name].energy_K)
            continue
        weights = [get_linear(tiny, path).weight for path in paths]
        assert group.rows == tuple(len(weight) for weight in weights)
        expected = decompose(torch.cat(weights), found.grams[paths[0]], found.gradients[name])
        assert torch.equal(group.energy_K, expected.energy_K)


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_llm_is_whitened_where_it_can_be_and_tends_to_it_as_its_damping_falls(shape: tuple[int, int]) -> None:
    weight, gram, _ = problem(shape)
    best = product(decompose(weight, gram), 10)
    assert relative(product(decompose_cholesky(weight, gram), 10), best) < 1e-8
    eye, least = torch.eye(shape[0]).double(), decompose(weight, gram).loss(10)
    losses = []
    for damping in (1e-2, 1e-4, 1e-6):
        spectrum = decompose_cholesky(weight, gram, damping)
        by_pca = decompose(weight, gram, damping=Damping(inputs=damping, gradients=0))
        assert relative(product(spectrum, 10), product(by_pca, 10)) < 1e-8
        losses.append(objective(weight - product(spectrum, 10), gram, eye))
    assert losses == sorted(losses, reverse=True)
    assert least * (1 - 1e-9) <= losses[-1] < 1.001 * least


def test_svd_llm_needs_damping_where_channels_repeat_and_says_so() -> None:
    weight, gram, _ = problem((24, 40))
    gram[:, :20] = gram[:20] = 0
    with pytest.raises(BadData, match=r"positive definite Gram, got a singular one with damping 0\.0"):
        decompose_cholesky(weight, gram)
    assert relative(product(decompose_cholesky(weight, gram, 1e-3), 24), weight) < 1e-8


@pytest.mark.parametrize("shape", SHAPES)
def test_asvd_is_the_svd_of_the_scaled_weight_scaled_back(shape: tuple[int, int]) -> None:
    weight, gram, _ = problem(shape)
    magnitude = gram.diagonal().sqrt()
    spectrum = decompose_scaled(weight, magnitude)
    for rank in (3, 12):
        scaled = (weight - product(spectrum, rank)) * magnitude.sqrt()
        assert float(scaled.square().sum()) == pytest.approx(spectrum.loss(rank), rel=1e-9)
    assert relative(product(spectrum, min(shape)), weight) < T64
    magnitude[3] = 0  # a channel that is never on
    assert relative(product(decompose_scaled(weight, magnitude), min(shape)), weight) < 1e-8


@pytest.mark.parametrize("shares", [(-0.1, 0), (0, float("inf")), (float("nan"), 0)])
def test_a_damping_outside_its_range_is_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="expected at least 0"):
        Damping(inputs=shares[0], gradients=shares[1])
