"""RoPE: a rotation by position, so that scores depend on distance alone. math.md 1.5."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.arch.presets import find_preset
from puna.arch.rope_scaling import LinearScaling
from puna.model.llama import Llama
from puna.model.positions import apply_rope, rope_angles, rope_frequencies

E = 64  # head_dim


def frequencies(base: float = 500_000.0) -> Tensor:
    return torch.tensor([base ** (-2 * j / E) for j in range(E // 2)], dtype=torch.float64)


def heads(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, E, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def rotate(x_BTHE: Tensor, positions: Tensor, theta_P: Tensor) -> Tensor:
    return apply_rope(x_BTHE, *rope_angles(theta_P, positions[None]))


def test_each_pair_turns_as_a_complex_number_by_position_times_frequency() -> None:
    x, positions = heads(1, 9, 3), torch.arange(9) * 7
    turned = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * positions[:, None, None] * frequencies())
    expected = torch.cat((turned.real, turned.imag), -1)
    torch.testing.assert_close(rotate(x, positions, frequencies()), expected, rtol=0, atol=1e-12)


def test_position_zero_is_the_identity() -> None:
    x = heads(2, 1, 3, dtype=torch.float32)
    assert torch.equal(rotate(x, torch.zeros(1, dtype=torch.int64), frequencies().float()), x)


def test_rotation_keeps_the_norm() -> None:
    x = heads(1, 50, 2, dtype=torch.float32)
    turned = rotate(x, torch.arange(50) * 100, frequencies().float())
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)


def score(q: Tensor, k: Tensor, m: int, n: int, theta_P: Tensor) -> Tensor:
    at_m, at_n = torch.tensor([m]), torch.tensor([n])
    return (rotate(q, at_m, theta_P) * rotate(k, at_n, theta_P)).sum(-1) / math.sqrt(E)


def test_a_score_depends_on_the_distance_alone() -> None:
    q, k = heads(1, 1, 40), heads(40, 1, 1).transpose(0, 2)
    for m, n, shift in [(5, 2, 1), (5, 2, 1000), (0, 0, 77), (900, 12, 100_000)]:
        moved = score(q, k, m + shift, n + shift, frequencies())
        torch.testing.assert_close(moved, score(q, k, m, n, frequencies()), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("position", "tolerance"), [(2_000, 1e-4), (10_000, 5e-4), (131_000, 5e-3)])
def test_float32_scores_stay_within_the_cost_of_float32_angles(position: int, tolerance: float) -> None:
    q, k = heads(1, 1, 200), heads(1, 1, 201)[:, :, :200]
    exact = score(q, k, position, position - 17, frequencies())
    single = score(q.float(), k.float(), position, position - 17, frequencies().float())
    assert float((single - exact).abs().max()) < tolerance


def test_metas_interleaved_weights_give_equal_scores_after_the_row_permutation() -> None:
    x, positions = heads(1, 6, 1), torch.arange(6) * 3
    w_q, w_k = (torch.randn(E, E, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))

    def interleaved(y: Tensor) -> Tensor:
        turned = torch.view_as_complex(y.unflatten(-1, (-1, 2))) * torch.exp(
            1j * positions[:, None, None] * frequencies()
        )
        return torch.view_as_real(turned).flatten(-2)

    to_hf = torch.cat((torch.arange(0, E, 2), torch.arange(1, E, 2)))
    meta = torch.einsum("btie,bsie->bts", interleaved(x @ w_q.T), interleaved(x @ w_k.T))
    ours = torch.einsum(
        "btie,bsie->bts",
        rotate(x @ w_q[to_hf].T, positions, frequencies()),
        rotate(x @ w_k[to_hf].T, positions, frequencies()),
    )
    torch.testing.assert_close(ours, meta, rtol=1e-10, atol=1e-10)


def test_the_backward_pass_is_the_rotation_by_minus_the_angle() -> None:
    x, upstream, positions = heads(1, 8, 2).requires_grad_(), heads(1, 8, 5)[:, :, :2], torch.arange(8) * 11
    (gradient,) = torch.autograd.grad(rotate(x, positions, frequencies()), x, upstream)
    torch.testing.assert_close(gradient, rotate(upstream, -positions, frequencies()), rtol=0, atol=1e-12)


def test_the_gradient_passes_a_central_difference_check() -> None:
    x = heads(1, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: rotate(x, torch.tensor([0, 5, 9]), frequencies()), (x,), eps=1e-6, rtol=1e-6, atol=1e-8
    )


def test_half_precision_tells_neighbouring_positions_apart_far_into_the_context() -> None:
    x, positions = heads(1, 2, 4).bfloat16(), torch.tensor([4096, 4097])
    got = rotate(x, positions, frequencies().float())
    assert got.dtype == torch.bfloat16
    expected = rotate(x.double(), positions, frequencies())
    assert float((got.double() - expected).abs().max() / expected.abs().max()) < 2**-8


def test_casting_or_moving_the_model_leaves_the_frequencies_as_they_are(tiny: Llama) -> None:
    before = tiny.position.frequencies_P.clone()
    assert torch.equal(tiny.bfloat16().position.frequencies_P, before)
    assert torch.equal(tiny.to("meta").to_empty(device="cpu").position.frequencies_P, before)


@pytest.mark.parametrize("preset", ["tiny", "llama-2-7b", "llama-3-8b"])
def test_the_plain_frequencies_are_powers_of_the_configs_base(preset: str) -> None:
    config = find_preset(preset).config
    expected = [config.rope_theta ** (-2 * j / config.head_dim) for j in range(config.head_dim // 2)]
    torch.testing.assert_close(rope_frequencies(config), torch.tensor(expected), rtol=1e-6, atol=0)


def test_the_configs_scaling_is_applied(tiny_config: ModelConfig) -> None:
    scaled = replace(tiny_config, rope_scaling=LinearScaling(factor=4.0))
    assert torch.equal(rope_frequencies(scaled), rope_frequencies(tiny_config) / 4)
