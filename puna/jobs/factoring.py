"""Low rank as a user asks for it: a method's decompositions from calibration text, and the rank of each matrix.

auto = two-sided decompositions of whole groups, and ranks of least summed loss, weighed by what each costs the model
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor

from puna.compression.allocation import same_share
from puna.compression.baselines import decompose_scaled
from puna.compression.groups import linear_groups
from puna.compression.hulls import Matrix, allocate_ranks
from puna.compression.low_rank import (
    Spectrum,
    check_finite,
    compress_low_rank,
    decompose_groups,
    decompose_linears,
)
from puna.compression.reference_costs import reference_costs
from puna.compression.statistics import collect_statistics, collect_two_sided_statistics
from puna.model.linears.kind import dense_weight
from puna.model.llama import Llama
from puna.model.surgery import get_linear, named_linears

__all__ = ["Allocation", "Method", "decompositions", "factorise"]

Method = Literal["auto", "svd", "asvd", "whitened", "kfac"]
Allocation = Literal["uniform", "greedy"]
_REFERENCE_WINDOWS = 4


def decompositions(model: Llama, method: Method, windows: Sequence[Tensor]) -> Iterator[tuple[str, Spectrum]]:
    """(name, Spectrum) of every matrix that the method factorises: a Linear by its path, or a group that shares V.

    Args: windows: ids_BT of calibration text; plain SVD needs none.
    """
    if method == "svd":
        yield from decompose_linears(model)
    elif method == "asvd":
        magnitudes = collect_statistics(model, windows).magnitudes
        for path, linear in named_linears(model):
            yield path, decompose_scaled(dense_weight(linear), magnitudes[path])
    elif method == "whitened":
        yield from decompose_linears(model, collect_statistics(model, windows).grams)
    else:
        both = collect_two_sided_statistics(model, windows)
        decompose = decompose_groups if method == "auto" else decompose_linears
        yield from decompose(model, both.grams, both.gradients)


def factorise(
    model: Llama, method: Method, keep: float, allocation: Allocation, windows: Sequence[Tensor]
) -> dict[str, int]:
    """Replace, in place, what the method factorises so that it stores at most `keep`; return the ranks by path.

    Args:   allocation: the same share of each, decomposed one at a time; or the least loss of all, each weighed by what the
            model's predictions lose on a few of the `windows` when it alone is cut.
    Errors: UsageError: keep outside its range. BadData: calibration; a weight that is NaN or infinite, named.
    """
    check_finite(named_linears(model))
    shapes = _shapes(model, method)
    ranks = same_share(shapes, keep)
    if allocation == "uniform" or not ranks:
        return compress_low_rank(model, decompositions(model, method, windows), ranks).ranks
    spectra = dict(decompositions(model, method, windows))
    costs = reference_costs(model, spectra, windows[:: max(1, len(windows) // _REFERENCE_WINDOWS)], ranks)
    matrices = {
        name: Matrix(d_out=d_out, d_in=d_in, energies=spectra[name].energy_K.tolist())
        for name, (d_out, d_in) in shapes.items()
    }
    return compress_low_rank(model, spectra.items(), allocate_ranks(matrices, keep, costs).ranks).ranks


def _shapes(model: Llama, method: Method) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of every matrix that the method factorises, by name; of a group's members stacked."""
    names = linear_groups(model.config) if method == "auto" else {path: (path,) for path, _ in named_linears(model)}
    shapes = {}
    for name, paths in names.items():
        members = [get_linear(model, path) for path in paths]
        shapes[name] = (sum(linear.out_features for linear in members), members[0].in_features)
    return shapes
