"""LowRankLinear: two products through a narrow middle are one product by U V."""

import pytest
import torch
from torch import Tensor

from puna.model.linears.low_rank import LowRankLinear


def gaussian(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_it_computes_the_product_by_u_v(rank: int) -> None:
    U, V, x = gaussian(6, rank, seed=0), gaussian(rank, 10, seed=1), gaussian(2, 5, 10, seed=2)
    linear = LowRankLinear(U, V)
    assert (linear.out_features, linear.in_features, linear.rank) == (6, 10, rank)
    torch.testing.assert_close(linear(x), x @ (U @ V).T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(linear.dense_weight(), (U @ V).float(), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_product() -> None:
    inputs = tuple(gaussian(*shape, seed=seed).requires_grad_() for seed, shape in enumerate([(4, 7), (6, 3), (3, 7)]))

    def by_module(x: Tensor, U: Tensor, V: Tensor) -> Tensor:
        return torch.func.functional_call(LowRankLinear(U.detach(), V.detach()), {"U": U, "V": V}, (x,))

    assert torch.autograd.gradcheck(by_module, inputs, eps=1e-6, rtol=1e-6)


def test_it_stores_rank_times_the_sum_of_the_widths() -> None:
    linear = LowRankLinear.empty(60, 100, 7)
    assert {name: tuple(weight.shape) for name, weight in linear.named_parameters()} == {"U": (60, 7), "V": (7, 100)}
    assert sum(weight.numel() for weight in linear.parameters()) == 7 * (60 + 100)


def test_empty_factors_are_filled_by_a_state_dict() -> None:
    source = LowRankLinear(gaussian(6, 3, seed=0), gaussian(3, 10, seed=1)).float()
    target = LowRankLinear.empty(6, 10, 3)
    target.load_state_dict(source.state_dict())
    x = gaussian(4, 10, seed=2, dtype=torch.float32)
    assert torch.equal(target(x), source(x))
