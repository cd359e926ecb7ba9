"""Low rank as a user asks for it: a method's decompositions from calibration text, and the rank of each matrix.

auto = two-sided decompositions of whole groups, and ranks of least summed loss, weighed by what each costs the model
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor

from puna.compression.allocation import uniform_rank
from puna.compression.baselines import decompose_scaled
from puna.compression.hulls import Matrix, allocate_ranks
from puna.compression.low_rank import Spectrum, decompose_groups, decompose_linears
from puna.compression.reference_costs import reference_costs
from puna.compression.statistics import collect_statistics, collect_two_sided_statistics
from puna.model.linears.kind import dense_weight
from puna.model.llama import Llama
from puna.model.surgery import named_linears

__all__ = ["Allocation", "Method", "choose_ranks", "decompositions"]

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


def choose_ranks(
    model: Llama, spectra: Mapping[str, Spectrum], keep: float, allocation: Allocation, windows: Sequence[Tensor]
) -> dict[str, int]:
    """Ranks by name that store at most `keep` of all these matrices' numbers; an absent one stays dense.

    Args:   allocation: the same share of each, or the least loss of all, each weighed by what the model's predictions
            lose on a few of the `windows` when it alone is cut.
    Errors: UsageError: keep outside its range.
    """
    shapes = {name: (len(each.left_oK), each.right_Ki.shape[1]) for name, each in spectra.items()}
    ranks = {name: rank for name, shape in shapes.items() if (rank := uniform_rank(shape, keep)) is not None}
    if allocation == "uniform" or not ranks:
        return ranks
    costs = reference_costs(model, spectra, windows[:: max(1, len(windows) // _REFERENCE_WINDOWS)], ranks)
    matrices = {
        name: Matrix(d_out=d_out, d_in=d_in, energies=spectra[name].energy_K.tolist())
        for name, (d_out, d_in) in shapes.items()
    }
    return allocate_ranks(matrices, keep, costs).ranks
