"""Low rank as a user asks for it: a method's decompositions from calibration text, and the rank of each matrix.

auto = two-sided decompositions of whole groups, and ranks of least summed loss, weighed by what each costs the model
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from puna.compression.statistics import (
    InputStatistics,
    TwoSidedStatistics,
    collect_statistics,
    collect_two_sided_statistics,
)
from puna.model.linears.kind import dense_weight
from puna.model.llama import Llama
from puna.model.surgery import get_linear, named_linears

__all__ = [
    "Allocation",
    "Factored",
    "Method",
    "decompose_by",
    "decompositions",
    "factorise",
    "measured_costs",
    "usual_allocation",
]

Method = Literal["auto", "svd", "asvd", "whitened", "kfac"]
Allocation = Literal["uniform", "greedy"]
_REFERENCE_WINDOWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Factored:
    """What low rank made of a model.

    ranks:    by the path of each Linear that was factorised.
    cuts:     the same by the name of what was decomposed, a Linear or a group; a name that is absent stayed dense.
    matrices: the size of each, by name, and what leaving out each of its components costs.
    """

    ranks: dict[str, int]
    cuts: dict[str, int]
    matrices: dict[str, Matrix]

    @property
    def has_spectra(self) -> bool:
        """Whether it is known what each component costs."""
        return any(matrix.energies for matrix in self.matrices.values())


def decompositions(model: Llama, method: Method, windows: Sequence[Tensor]) -> Iterator[tuple[str, Spectrum]]:
    """(name, Spectrum) of every matrix that the method factorises: a Linear by its path, or a group that shares V.

    Args: windows: ids_BT of calibration text; plain SVD needs none.
    """
    if method == "svd":
        yield from decompose_linears(model)
    elif method in ("asvd", "whitened"):
        yield from decompose_by(model, method, collect_statistics(model, windows))
    else:
        yield from decompose_by(model, method, collect_two_sided_statistics(model, windows))


def decompose_by(model: Llama, method: Method, statistics: InputStatistics) -> Iterator[tuple[str, Spectrum]]:
    """As `decompositions`, from statistics that are there. Args: statistics: two-sided ones serve every method."""
    if method == "svd":
        yield from decompose_linears(model)
    elif method == "asvd":
        for path, linear in named_linears(model):
            yield path, decompose_scaled(dense_weight(linear), statistics.magnitudes[path])
    elif method == "whitened":
        yield from decompose_linears(model, statistics.grams)
    else:
        assert isinstance(statistics, TwoSidedStatistics), method
        decompose = decompose_groups if method == "auto" else decompose_linears
        yield from decompose(model, statistics.grams, statistics.gradients)


def usual_allocation(method: Method) -> Allocation:
    """How ranks are shared out where nothing is asked: greedy for auto, uniform for a method by its name."""
    return "greedy" if method == "auto" else "uniform"


def factorise(
    model: Llama,
    method: Method,
    keep: float,
    allocation: Allocation,
    windows: Sequence[Tensor],
    spectra: Mapping[str, Spectrum] | None = None,
    costs: Mapping[str, float] | None = None,
) -> Factored:
    """Replace, in place, what the method factorises so that it stores at most `keep`.

    Args:   allocation: the same share of each, decomposed one at a time; or the least loss of all, each weighed by what the
            model's predictions lose on a few of the `windows` when it alone is cut.
            spectra: the method's decompositions of this model's weights, where they are there already.
            costs: what `measured_costs` found, be it at another size; None: greedy measures them at this one.
    Errors: UsageError: keep outside its range. BadData: calibration; a weight that is NaN or infinite, named.
    """
    check_finite(named_linears(model))
    shapes = _shapes(model, method)
    ranks = same_share(shapes, keep)
    found = decompositions(model, method, windows) if spectra is None else iter(spectra.items())
    matrices: dict[str, Matrix] = {}
    if allocation == "greedy" and ranks:
        whole = dict(_noted(found, shapes, matrices))
        if costs is None:
            costs = measured_costs(model, method, whole, windows, keep)
        ranks, found = allocate_ranks(matrices, keep, costs).ranks, iter(whole.items())
    done = compress_low_rank(model, _noted(found, shapes, matrices), ranks)
    return Factored(ranks=done.ranks, cuts=ranks, matrices=matrices)


def measured_costs(
    model: Llama, method: Method, spectra: Mapping[str, Spectrum], windows: Sequence[Tensor], keep: float
) -> dict[str, float]:
    """What a unit of each matrix's loss costs the model where it alone keeps this share, on a few of the windows."""
    some = windows[:: max(1, len(windows) // _REFERENCE_WINDOWS)]
    return reference_costs(model, spectra, some, same_share(_shapes(model, method), keep))


def _noted(
    spectra: Iterable[tuple[str, Spectrum]], shapes: Mapping[str, tuple[int, int]], matrices: dict[str, Matrix]
) -> Iterator[tuple[str, Spectrum]]:
    """The spectra as they come; what each says of its matrix stays behind."""
    for name, spectrum in spectra:
        d_out, d_in = shapes[name]
        matrices[name] = Matrix(d_out=d_out, d_in=d_in, energies=spectrum.energy_K.tolist())
        yield name, spectrum


def _shapes(model: Llama, method: Method) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of every matrix that the method factorises, by name; of a group's members stacked."""
    names = linear_groups(model.config) if method == "auto" else {path: (path,) for path, _ in named_linears(model)}
    shapes = {}
    for name, paths in names.items():
        members = [get_linear(model, path) for path in paths]
        shapes[name] = (sum(linear.out_features for linear in members), members[0].in_features)
    return shapes
