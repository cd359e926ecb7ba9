"""How many of its numbers each matrix keeps, under a budget of stored bits.

    W (m, n) as U (m, r) V (r, n) stores r (m + n) numbers in place of m n: it saves below r = m n / (m + n)

Source: docs/compression.md sections 0 and 1.
"""

from collections.abc import Mapping

from puna.arch.config import ModelConfig
from puna.arch.modules import LINEARS, linear_path, linear_shapes
from puna.compression.hulls import check_keep

__all__ = ["same_share", "uniform_rank", "uniform_ranks"]


def uniform_rank(shape: tuple[int, int], keep: float) -> int | None:
    """The largest rank that stores at most `keep` of a dense (d_out, d_in) matrix; None: factors save nothing here."""
    dense, each = shape[0] * shape[1], shape[0] + shape[1]
    rank = max(1, int(keep * dense / each))
    return rank if keep < 1 and rank * each < dense else None


def uniform_ranks(config: ModelConfig, keep: float) -> dict[str, int]:
    """Ranks by path at the same kept share of every block Linear; a path that is absent stays dense.

    Args:   keep: kept share of the stored bits of the block Linears, 0 < keep <= 1; 1 leaves every one dense.
    Errors: UsageError: keep outside its range.
    """
    shapes = linear_shapes(config)
    return same_share(
        {linear_path(layer, name): shapes[name] for layer in range(config.n_layers) for name in LINEARS}, keep
    )


def same_share(shapes: Mapping[str, tuple[int, int]], keep: float) -> dict[str, int]:
    """Ranks by name at the same kept share of every (d_out, d_in) matrix; a name that is absent stays dense.

    Errors: UsageError: keep outside its range.
    """
    check_keep(keep)
    return {name: rank for name, shape in shapes.items() if (rank := uniform_rank(shape, keep)) is not None}
