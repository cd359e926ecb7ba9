"""Fewer key-value heads: those of each group of query heads become one, by what the scores and the outputs then lose.

    mean:    the group's rows averaged                     Ainslie et al. 2023, arXiv:2305.13245
    aligned: each head turned towards the group's mean first, what turned it absorbed by W_q and W_o; then the group's norm
             restored                                      Jin et al. 2024, arXiv:2412.20677
    joint:   v by the best rank E of the stacked [W_o,h W_v,h] C^1/2; k by the best complex rank 1 of each RoPE pair's rows
             sqrt(e_h) kappa_h C^1/2                       docs/compression.md 3

C is the mean of x x^T of what attention reads, e_h,j = E |q_h,j|^2. Heads have no common gauge: W_o,h absorbs any invertible
map of v, and W_q,h any complex factor of a key's pair (j, j + E/2), which is all that commutes with RoPE. Plain means of
heads in different gauges cancel. After `joint` each query head is scaled so that its scores vary as much as before.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from puna.compression.low_rank import damped_root
from puna.errors import UsageError, unknown_name

__all__ = ["HeadLoss", "Heads", "Pooling", "check_kv_heads", "pool_heads"]

Pooling = Literal["joint", "aligned", "mean"]
_ROUNDS = 10  # of turning every head towards the mean of all; two or three are enough
_TINY = torch.finfo(torch.float64).tiny
_FLOOR = 1e-12  # of the largest energy of a query's pair: what one that never speaks counts at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The weights of one layer's attention by heads, float64: H query heads on P key-value heads, head i on i // (H / P)."""

    q_HED: Tensor
    k_PED: Tensor
    v_PED: Tensor
    o_HDE: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLoss:
    """What `joint` leaves out, the squared singular values that it dropped: of the scores' keys, of the outputs' values."""

    keys: float
    values: float


def check_kv_heads(before: int, after: int) -> None:
    """Errors: UsageError: so many heads cannot be made of those there are."""
    if after < 1 or before % after:
        raise UsageError(
            f"kv_heads: expected a divisor of {before}, got {after}", "each new head stands for as many old ones"
        )


@torch.no_grad()
def pool_heads(
    heads: Heads, groups: int, covariance_DD: Tensor, pooling: Pooling = "joint"
) -> tuple[Heads, HeadLoss | None]:
    """One layer's attention with fewer key-value heads, and for `joint` what it lost.

    Args:   groups: key-value heads afterwards, a divisor of those before. covariance_DD: mean of x x^T of the layer's input.
    Errors: UsageError.
    """
    check_kv_heads(len(heads.k_PED), groups)
    if pooling not in get_args(Pooling):
        raise unknown_name("pooling", pooling, get_args(Pooling))
    if pooling == "mean":
        mean_k, mean_v = (x.unflatten(0, (groups, -1)).mean(1) for x in (heads.k_PED, heads.v_PED))
        return Heads(q_HED=heads.q_HED, k_PED=mean_k, v_PED=mean_v, o_HDE=heads.o_HDE), None
    root_DD = damped_root(covariance_DD)
    if pooling == "aligned":
        return _aligned(heads, groups, root_DD), None
    return _joint(heads, groups, root_DD)


def _joint(heads: Heads, groups: int, root_DD: Tensor) -> tuple[Heads, HeadLoss]:
    q_HJD, k_PJD = _pairs(heads.q_HED), _pairs(heads.k_PED)
    energy_HJ, key_energy_PJ = _energy(q_HJD, root_DD), _energy(k_PJD, root_DD)
    shared_GJD, c_PJ, lost = _joint_keys(k_PJD, energy_HJ.unflatten(0, (len(k_PJD), -1)).sum(1), groups, root_DD)
    each = len(q_HJD) // len(k_PJD)
    c_HJ, old_HJ = (x.repeat_interleave(each, 0) for x in (c_PJ, key_energy_PJ))
    grown_H = _ratio((energy_HJ * old_HJ).sum(1), (energy_HJ * c_HJ.abs().square()).sum(1)).sqrt()
    q_HJD = c_HJ.conj()[..., None] * q_HJD * grown_H[:, None, None]
    v_GED, o_HDE, dropped = _joint_values(heads, groups, root_DD)
    pooled = Heads(q_HED=_rows(q_HJD), k_PED=_rows(shared_GJD), v_PED=v_GED, o_HDE=o_HDE)
    return pooled, HeadLoss(keys=lost, values=dropped)


def _joint_keys(k_PJD: Tensor, energy_PJ: Tensor, groups: int, root_DD: Tensor) -> tuple[Tensor, Tensor, float]:
    """Keys of one unit of energy, shared_GJD; what stands for the old ones, old = c_PJ shared; the loss."""
    weight_PJ = energy_PJ.clamp(min=max(_FLOOR * float(energy_PJ.max()), _TINY)).sqrt()
    rows_PJD = weight_PJ[..., None] * (k_PJD @ root_DD.to(k_PJD.dtype))
    U, s, Vh = torch.linalg.svd(rows_PJD.unflatten(0, (groups, -1)).transpose(1, 2), full_matrices=False)
    shared_GJD = torch.linalg.solve_triangular(root_DD.to(k_PJD.dtype), Vh[..., 0, :], upper=False, left=False)
    c_PJ = (U[..., 0] * s[..., :1]).transpose(1, 2).flatten(0, 1) / weight_PJ
    return shared_GJD, c_PJ, float(s[..., 1:].square().sum())


def _joint_values(heads: Heads, groups: int, root_DD: Tensor) -> tuple[Tensor, Tensor, float]:
    """Values of one unit of energy in each direction, what reads them, and the loss."""
    width, each = heads.v_PED.shape[1], len(heads.q_HED) // len(heads.v_PED)
    Q_HDE, R_HEE = torch.linalg.qr(heads.o_HDE)
    spoken_HED = R_HEE @ (heads.v_PED @ root_DD).repeat_interleave(each, 0)
    P, s, Vh = torch.linalg.svd(spoken_HED.unflatten(0, (groups, -1)).flatten(1, 2), full_matrices=False)
    v_GED = torch.linalg.solve_triangular(root_DD, Vh[:, :width], upper=False, left=False)
    read_HEE = (P[..., :width] * s[:, None, :width]).unflatten(1, (-1, Q_HDE.shape[-1])).flatten(0, 1)
    return v_GED, Q_HDE @ read_HEE, float(s[:, width:].square().sum())


def _aligned(heads: Heads, groups: int, root_DD: Tensor) -> Heads:
    each = len(heads.q_HED) // len(heads.k_PED)
    k_PJD, v_PED = _pairs(heads.k_PED), heads.v_PED
    seen_PJD, spoken_PED = k_PJD @ root_DD.to(k_PJD.dtype), v_PED @ root_DD
    phases_PJ = torch.cat([_phases(part) for part in seen_PJD.unflatten(0, (groups, -1))])
    turns_PEE = torch.cat([_turns(part) for part in spoken_PED.unflatten(0, (groups, -1))])
    k_PJD, seen_PJD = (phases_PJ[..., None] * x for x in (k_PJD, seen_PJD))
    v_PED, spoken_PED = (turns_PEE @ x for x in (v_PED, spoken_PED))
    k_GJD, v_GED = (
        x.unflatten(0, (groups, -1)).mean(1) * _shrunk(seen.unflatten(0, (groups, -1)), dims)
        for x, seen, dims in ((k_PJD, seen_PJD, (-1,)), (v_PED, spoken_PED, (-2, -1)))
    )
    q_HJD = phases_PJ.repeat_interleave(each, 0)[..., None] * _pairs(heads.q_HED)
    o_HDE = heads.o_HDE @ turns_PEE.repeat_interleave(each, 0).mT
    return Heads(q_HED=_rows(q_HJD), k_PED=_rows(k_GJD), v_PED=v_GED, o_HDE=o_HDE)


def _phases(seen_RJD: Tensor) -> Tensor:
    """The phase of each head's pair that turns it towards the mean of the heads, (R, J)."""
    phases_RJ, mean_JD = torch.ones_like(seen_RJD[..., 0]), seen_RJD[0]
    for _ in range(_ROUNDS):
        inner_RJ = (mean_JD * seen_RJD.conj()).sum(-1)
        phases_RJ = _ratio(inner_RJ, inner_RJ.abs())
        mean_JD = (phases_RJ[..., None] * seen_RJD).mean(0)
    return phases_RJ


def _turns(spoken_RED: Tensor) -> Tensor:
    """The orthogonal matrix that turns each head's values towards the mean of the heads: Procrustes, (R, E, E)."""
    turns_REE, mean_ED = torch.eye(spoken_RED.shape[1]).to(spoken_RED).expand(len(spoken_RED), -1, -1), spoken_RED[0]
    for _ in range(_ROUNDS):
        U, _, Vh = torch.linalg.svd(mean_ED @ spoken_RED.mT)
        turns_REE = U @ Vh
        mean_ED = (turns_REE @ spoken_RED).mean(0)
    return turns_REE


def _shrunk(parts_GR: Tensor, dims: tuple[int, ...]) -> Tensor:
    """What the mean of each group's heads lost in norm, as a factor."""
    whole = parts_GR.abs().square().sum(dims, keepdim=True).mean(1)
    mean = parts_GR.mean(1).abs().square().sum(dims, keepdim=True)
    return _ratio(whole, mean).sqrt()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 1 where there is nothing to compare."""
    return torch.where(b == 0, 1, a / b.clamp(min=_TINY))


def _pairs(x_NED: Tensor) -> Tensor:
    """Rows j and j + E/2 as one complex row, (N, E/2, D): RoPE turns it by one angle."""
    first, second = x_NED.chunk(2, dim=1)
    return torch.complex(first, second)


def _rows(z_NJD: Tensor) -> Tensor:
    return torch.cat((z_NJD.real, z_NJD.imag), dim=1)


def _energy(z_NJD: Tensor, root_DD: Tensor) -> Tensor:
    """E |z x|^2 of each head's pair, (N, J)."""
    return (z_NJD @ root_DD.to(z_NJD.dtype)).abs().square().sum(-1)
