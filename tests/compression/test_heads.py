"""Fewer key-value heads: the laws of docs/compression.md 3, in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from puna.compression.heads import Heads, pool_heads
from puna.errors import UsageError

H, P, E, D = 8, 4, 6, 24


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heads_of(seed: int = 0, parents: int = P) -> Heads:
    return Heads(
        q_HED=drawn(H, E, D, seed=seed),
        k_PED=drawn(parents, E, D, seed=seed + 1),
        v_PED=drawn(parents, E, D, seed=seed + 2),
        o_HDE=drawn(H, D, E, seed=seed + 3),
    )


def covariance(seed: int = 9) -> Tensor:
    root = drawn(D, D, seed=seed) * torch.logspace(0, -1, D, dtype=torch.float64)
    return root @ root.T


def rotated(x_NTE: Tensor, positions_T: Tensor) -> Tensor:
    """RoPE on pairs (j, j + E/2)."""
    angles_TJ = positions_T[:, None] * 100.0 ** -(torch.arange(E // 2) / (E // 2))
    first, second = x_NTE.chunk(2, dim=-1)
    cos, sin = angles_TJ.cos(), angles_TJ.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attended(heads: Heads, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """(scores of each query head, output): attention with RoPE over a few tokens."""
    each, positions_T = H // len(heads.k_PED), torch.arange(len(x_TD), dtype=torch.float64)
    q_HTE = rotated(x_TD @ heads.q_HED.mT, positions_T)
    k_HTE = rotated(x_TD @ heads.k_PED.mT, positions_T).repeat_interleave(each, 0)
    v_HTE = (x_TD @ heads.v_PED.mT).repeat_interleave(each, 0)
    scores_HTT = q_HTE @ k_HTE.mT
    return scores_HTT, (scores_HTT.softmax(-1) @ v_HTE @ heads.o_HDE.mT).sum(0)


def in_another_gauge(heads: Heads, seed: int = 40) -> Heads:
    """The same function, each head's values in coordinates of its own and each pair of its keys turned and scaled."""
    parents, each = len(heads.k_PED), H // len(heads.k_PED)
    mix_PEE = drawn(parents, E, E, seed=seed) + 3 * torch.eye(E, dtype=torch.float64)
    turn_PJ = torch.complex(drawn(parents, E // 2, seed=seed + 1), drawn(parents, E // 2, seed=seed + 2))

    def pairs(x: Tensor) -> Tensor:
        return torch.complex(*x.chunk(2, dim=1))

    def rows(z: Tensor) -> Tensor:
        return torch.cat((z.real, z.imag), dim=1)

    q = rows(pairs(heads.q_HED) / turn_PJ.conj().repeat_interleave(each, 0)[..., None])
    o = heads.o_HDE @ torch.linalg.inv(mix_PEE).repeat_interleave(each, 0)
    return Heads(q_HED=q, k_PED=rows(turn_PJ[..., None] * pairs(heads.k_PED)), v_PED=mix_PEE @ heads.v_PED, o_HDE=o)


def equal_heads(groups: int) -> Heads:
    """Parents that agree within each group."""
    few = heads_of(parents=groups)
    return replace(few, **{name: getattr(few, name).repeat_interleave(P // groups, 0) for name in ("k_PED", "v_PED")})


def test_what_a_gauge_changes_is_not_the_function() -> None:
    x_TD = drawn(7, D, seed=5)
    for ours, other in zip(attended(heads_of(), x_TD), attended(in_another_gauge(heads_of()), x_TD), strict=True):
        torch.testing.assert_close(ours, other)


@pytest.mark.parametrize("pooling", ["joint", "aligned", "mean"])
@pytest.mark.parametrize("parents", [P, H])
def test_as_many_heads_as_before_are_the_same_function(pooling, parents: int) -> None:
    heads, x_TD = heads_of(parents=parents), drawn(7, D, seed=5)
    pooled, loss = pool_heads(heads, parents, covariance(), pooling)
    for ours, other in zip(attended(pooled, x_TD), attended(heads, x_TD), strict=True):
        torch.testing.assert_close(ours, other)
    assert loss is None or loss.keys + loss.values < 1e-20


@pytest.mark.parametrize("groups", [2, 1])
def test_heads_that_are_equal_up_to_gauge_convert_without_an_error(groups: int) -> None:
    heads, x_TD = equal_heads(groups), drawn(7, D, seed=5)
    pooled, loss = pool_heads(in_another_gauge(heads), groups, covariance())
    assert (len(pooled.k_PED), len(pooled.v_PED)) == (groups, groups)
    assert loss is not None
    assert loss.keys + loss.values < 1e-12
    for ours, other in zip(attended(pooled, x_TD), attended(heads, x_TD), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-7, atol=1e-7)
    assert not torch.allclose(attended(pool_heads(in_another_gauge(heads), groups, covariance(), "mean")[0], x_TD)[1],
                              attended(heads, x_TD)[1], rtol=0.1)  # fmt: skip


def test_heads_that_are_equal_up_to_a_turn_are_aligned() -> None:
    heads, x_TD = equal_heads(2), drawn(7, D, seed=5)
    turns_PEE = torch.linalg.qr(drawn(P, E, E, seed=6))[0]
    each = H // P
    turned = replace(heads, v_PED=turns_PEE @ heads.v_PED, o_HDE=heads.o_HDE @ turns_PEE.repeat_interleave(each, 0).mT)
    root_DD = torch.linalg.cholesky(covariance())
    pooled = pool_heads(turned, 2, root_DD @ root_DD.T, "aligned")[0]
    for ours, other in zip(attended(pooled, x_TD), attended(heads, x_TD), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-6)


def test_the_loss_is_what_was_dropped_and_no_other_values_lose_less() -> None:
    heads, C = heads_of(), covariance()
    C = C + 1e-6 * C.diagonal().mean() * torch.eye(D, dtype=torch.float64)  # as it is damped
    pooled, loss = pool_heads(heads, 2, C)
    assert loss is not None

    def output_loss(found: Heads) -> float:
        spoken, before = (x.o_HDE @ x.v_PED.repeat_interleave(H // len(x.v_PED), 0) for x in (found, heads))
        difference = before - spoken
        return float((difference @ C * difference).sum())

    assert output_loss(pooled) == pytest.approx(loss.values, rel=1e-5)
    for name in ("aligned", "mean"):
        assert output_loss(pool_heads(heads, 2, C, name)[0]) > loss.values  # type: ignore[arg-type]
    for seed in range(3):
        near = replace(pooled, v_PED=pooled.v_PED + 1e-3 * drawn(2, E, D, seed=seed))
        assert output_loss(near) > output_loss(pooled)


def test_a_query_heads_scores_vary_as_much_as_before() -> None:
    heads, C = heads_of(), covariance()
    root_DD = torch.linalg.cholesky(C)
    pooled = pool_heads(heads, 2, C)[0]

    def energies(x_NED: Tensor) -> Tensor:
        return torch.complex(*(x_NED @ root_DD).chunk(2, dim=1)).abs().square().sum(-1)

    before, after = (
        (energies(x.q_HED) * energies(x.k_PED).repeat_interleave(H // len(x.k_PED), 0)).sum(1) for x in (heads, pooled)
    )
    torch.testing.assert_close(after, before, rtol=1e-4, atol=0)
    torch.testing.assert_close(energies(pooled.k_PED), torch.ones(2, E // 2, dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("groups", [0, 3, 8])
def test_what_does_not_divide_is_refused(groups: int) -> None:
    with pytest.raises(UsageError, match="kv_heads: expected a divisor of 4"):
        pool_heads(heads_of(), groups, covariance())
    with pytest.raises(UsageError, match="unknown pooling"):
        pool_heads(heads_of(), 2, covariance(), "median")  # type: ignore[arg-type]


def test_a_head_that_never_speaks_is_no_division_by_zero() -> None:
    heads = heads_of()
    silent = replace(heads, q_HED=heads.q_HED.clone().index_fill_(0, torch.tensor([0, 1]), 0))
    for pooling in ("joint", "aligned"):
        pooled, _ = pool_heads(silent, 2, covariance(), pooling)  # type: ignore[arg-type]
        assert all(getattr(pooled, name).isfinite().all() for name in ("q_HED", "k_PED", "v_PED", "o_HDE"))
