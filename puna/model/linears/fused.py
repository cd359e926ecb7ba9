"""Low-rank Linears of one input that share their first factor: y_i = U_i (V x), V (R, d_in), U_i (d_out_i, R).

That is the low rank of the stacked weight [W_1; W_2; ...] and stores R (d_in + sum of d_out_i) numbers. V is one parameter
of several Linears, as the table is of a tied head: counted, stored and trained once, its gradient the sum over them.
Where they are projected together V x is formed once (group.py); each alone is any low-rank Linear.
Source: docs/compression.md 1.6.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from puna.model.linears.kind import AnyLinear
from puna.model.linears.low_rank import LowRankLinear
from puna.model.linears.rounded_low_rank import RoundedLowRankLinear

__all__ = ["first_factor", "fused_linears", "fused_paths"]


def fused_linears(Us_oR: Iterable[Tensor], V_Ri: Tensor) -> tuple[LowRankLinear, ...]:
    """One Linear for each U, all with the same V."""
    shared = nn.Parameter(V_Ri)
    linears = tuple(LowRankLinear(U_oR, V_Ri) for U_oR in Us_oR)
    for linear in linears:
        assert linear.rank == len(V_Ri)
        linear.V = shared
    return linears


def fused_paths(linears: Iterable[tuple[str, AnyLinear]]) -> Iterator[tuple[str, ...]]:
    """The paths of each group that shares a V, of two or more, in the order given. Args: linears: by path."""
    members: dict[Tensor, list[str]] = {}
    for path, linear in linears:
        if isinstance(linear, LowRankLinear | RoundedLowRankLinear):
            members.setdefault(first_factor(linear), []).append(path)
    yield from (tuple(paths) for paths in members.values() if len(paths) > 1)


def first_factor(linear: LowRankLinear | RoundedLowRankLinear) -> Tensor:
    """The tensor that is one and the same in Linears that share V: V itself, or where it is of few bits its first part."""
    return linear.V if isinstance(linear, LowRankLinear) else next(linear.V.buffers())
