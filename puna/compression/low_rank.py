"""Low-rank weights: the best W' = U V of rank r, for the inputs that W really reads and for what the loss feels of it.

    svd:        min |W - W'|                    W = P S Q^T;  U = P_r S_r^1/2, V = S_r^1/2 Q_r^T
    whitened:   min |(W - W') X|                G = X X^T
    two-sided:  min |H^1/2 (W - W') G^1/2|      H = sum g g^T, g = d loss / d y  (K-FAC)

The last two are one PCA of the outputs: H^1/2 W G W^T H^1/2 = P L P^T;  U = H^-1/2 P_r, V = P_r^T H^1/2 W, with H = I
for `whitened`. No root and no inverse of G: a singular one is no special case. A tall W = Q R is treated as R under
Q^T H Q, the outputs then being rotated back by Q: no matrix is wider than min(d_out, d_in). For `whitened` Q is not
formed: R is the Cholesky factor of W^T W and U = W (R^-1 P_r), in a third of the time and without a second tall matrix;
a W too near to singular for that has its QR. The loss is the sum of the dropped eigenvalues (squared singular values), so
one decomposition serves every rank.
Sources: Eckart & Young 1936; Wang et al. 2024, arXiv:2403.07378; Swift-SVD, arXiv:2604.01609; OBD-LLM, arXiv:2604.00821;
docs/compression.md 1.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from puna.compression.groups import group_members, linear_groups
from puna.compression.sizes import linear_bytes
from puna.errors import BadData, UsageError
from puna.model.linears.kind import AnyLinear, dense_weight, own_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, named_linears, replace_group, replace_linear

__all__ = [
    "CompressionReport",
    "Damping",
    "Spectrum",
    "balanced",
    "check_finite",
    "compress_low_rank",
    "damped_root",
    "decompose",
    "decompose_group",
    "decompose_groups",
    "decompose_linears",
    "decompose_outputs",
    "decompose_whitened",
    "eigenpairs",
    "stored_factor",
]

_FLOOR = 1e-12  # of the largest eigenvalue: what an output direction without any gradient counts at least
_WELL_CONDITIONED = 1e-4  # least over largest diagonal of R: W^T W then holds W's directions to 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Damping:
    """What is added to each Gram's diagonal, as a share of its mean eigenvalue: calibration text is only a sample."""

    inputs: float
    gradients: float

    def __post_init__(self) -> None:
        for name, share in (("inputs", self.inputs), ("gradients", self.gradients)):
            if not 0 <= share < float("inf"):
                raise UsageError(f"damping.{name}: expected at least 0, got {share}", "0.1 and 0.3 are common")


_WHITENED = Damping(inputs=0.0, gradients=0.0)
_TWO_SIDED = Damping(inputs=0.1, gradients=0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """One matrix as a sum of K = min(d_out, d_in) rank-1 components, the most valuable first; float64.

    left_oK, right_Ki: W = left right; component i is left[:, i] right[i]. Where a rank was asked for, only its components.
    energy_K:          what leaving out component i costs, in the units of its method's (damped) loss.
    rows:              the output rows of each member where W is a stack of several.
    """

    left_oK: Tensor
    right_Ki: Tensor
    energy_K: Tensor
    rows: tuple[int, ...]

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """U (d_out, rank) and V (rank, d_in), views in float64."""
        return self.left_oK[:, :rank], self.right_Ki[:rank]

    def member_factors(self, rank: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """U_i (d_out_i, rank) of each member, and the V (rank, d_in) that they share; views in float64."""
        U_oR, V_Ri = self.factors(rank)
        return U_oR.split(self.rows), V_Ri

    def loss(self, rank: int) -> float:
        """The exact loss of `factors(rank)`, in its method's own metric, squared."""
        return float(self.energy_K[rank:].flip(0).sum())  # smallest first keeps the digits


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionReport:
    """What the block Linears stored before and after, and by path the rank of each that was factorised."""

    bytes_before: int
    bytes_after: int
    ranks: dict[str, int]


@torch.no_grad()
def decompose(
    weight_oi: Tensor,
    gram_ii: Tensor | None = None,
    gradient_gram_oo: Tensor | None = None,
    damping: Damping | None = None,
) -> Spectrum:
    """Decompose a weight once for every rank, in float64.

    Args: gram_ii: X X^T of the weight's inputs X (d_in, tokens): whitened. gradient_gram_oo: sum of g g^T of its
          outputs: two-sided. Neither: plain SVD. damping: of the Grams that are given; None: none for whitened, 0.1
          and 0.3 for two-sided.
    """
    weight = weight_oi.double()
    if gram_ii is None and gradient_gram_oo is None:
        return balanced(*torch.linalg.svd(weight, full_matrices=False))
    if damping is None:
        damping = _WHITENED if gradient_gram_oo is None else _TWO_SIDED
    if gradient_gram_oo is None:
        assert gram_ii is not None
        return decompose_whitened(weight, gram_ii, damping.inputs)
    Q_oK, R_Ki = torch.linalg.qr(weight)
    S_KK = R_Ki @ R_Ki.T if gram_ii is None else _damped_outputs(R_Ki, gram_ii.double(), damping.inputs)
    gradient_oo = gradient_gram_oo.double()
    extra = damping.gradients * float(gradient_oo.diagonal().mean())
    root_KK, inverse_KK = _roots(_plus_diagonal(Q_oK.T @ gradient_oo @ Q_oK, extra))
    energy_K, P_KK = eigenpairs(root_KK @ S_KK @ root_KK)
    return _spectrum(Q_oK @ (inverse_KK @ P_KK), P_KK.T @ root_KK @ R_Ki, energy_K)


@torch.no_grad()
def decompose_whitened(weight_oi: Tensor, gram_ii: Tensor, damping: float = 0.0, rank: int | None = None) -> Spectrum:
    """`decompose` for the inputs alone.

    Args: damping: a share of the Gram's mean eigenvalue. rank: how many components to form; None: all.
    """
    weight, gram_ii = weight_oi.double(), gram_ii.double()
    if weight.shape[0] <= weight.shape[1]:
        return decompose_outputs(weight, _damped_outputs(weight, gram_ii, damping), rank)
    Q_oK, R_KK = None, _triangle(weight)
    if R_KK is None:
        Q_oK, R_KK = torch.linalg.qr(weight)
    energy_K, P_Kr = eigenpairs(_damped_outputs(R_KK, gram_ii, damping), rank)
    right_ri = P_Kr.T @ R_KK
    left_or = weight @ torch.linalg.solve_triangular(R_KK, P_Kr, upper=True) if Q_oK is None else Q_oK @ P_Kr
    return _spectrum(left_or, right_ri, energy_K)


@torch.no_grad()
def decompose_outputs(weight_oi: Tensor, gram_oo: Tensor, rank: int | None = None) -> Spectrum:
    """As `decompose_whitened`, of a weight that is not tall, where the Gram of its outputs is known.

    Args: gram_oo: Y Y^T of the outputs Y = W X (d_out, tokens), squared and summed in float64: in float32 the squares of
          a loud output hide the quiet ones. rank: how many components to form; None: all.
    """
    assert weight_oi.shape[0] <= weight_oi.shape[1]
    energy_K, P_or = eigenpairs(gram_oo.double(), rank)
    return _spectrum(P_or, P_or.T @ weight_oi.double(), energy_K)


def balanced(P_oK: Tensor, s_K: Tensor, right_Ki: Tensor) -> Spectrum:
    """P S Q, the singular values shared out between both sides; their squares are the losses."""
    root_K = s_K.sqrt()
    return _spectrum(P_oK * root_K, root_K[:, None] * right_Ki, s_K.square())


def decompose_group(
    weights_oi: Sequence[Tensor],
    gram_ii: Tensor | None = None,
    gradient_gram_oo: Tensor | None = None,
    damping: Damping | None = None,
) -> Spectrum:
    """Decompose Linears that read one input as one stacked matrix, for factors that share V.

    Args: gradient_gram_oo: of the stacked output: with members' own ones alone the largest would outweigh the rest.
    """
    spectrum = decompose(torch.cat(tuple(weights_oi)), gram_ii, gradient_gram_oo, damping)
    return replace(spectrum, rows=tuple(len(weight) for weight in weights_oi))


def decompose_linears(
    model: Llama,
    grams: Mapping[str, Tensor] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    damping: Damping | None = None,
) -> Iterator[tuple[str, Spectrum]]:
    """(path, Spectrum) of every block Linear, one at a time; kept in a dict they serve any number of sizes."""
    for path, linear in named_linears(model):
        yield path, decompose(dense_weight(linear), _of(grams, path), _of(gradients, path), damping)


def decompose_groups(
    model: Llama,
    grams: Mapping[str, Tensor] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    damping: Damping | None = None,
) -> Iterator[tuple[str, Spectrum]]:
    """(name, Spectrum) of every group of block Linears that read one input, one at a time; names as `linear_groups`."""
    for name, paths in linear_groups(model.config).items():
        weights = [dense_weight(get_linear(model, path)) for path in paths]
        yield name, decompose_group(weights, _of(grams, paths[0]), _of(gradients, name), damping)


def check_finite(linears: Iterable[tuple[str, AnyLinear]]) -> None:
    """Errors: BadData naming the first Linear whose weight holds NaN or infinity."""
    for path, linear in linears:
        if not all(torch.isfinite(edge) for edge in own_weight(linear).aminmax()):
            raise BadData(
                f"{path}: expected finite weights, got NaN or infinity", "take an undamaged copy of the model"
            )


def compress_low_rank(
    model: Llama, spectra: Iterable[tuple[str, Spectrum]], ranks: Mapping[str, int]
) -> CompressionReport:
    """Replace, in place, each block Linear that has a rank by its two factors, and each group by factors that share V.

    Args: spectra: from `decompose_linears` or `decompose_groups`, of this model or of the one it is a copy of.
          ranks: by name, from `allocation` or `hulls`; a name that is absent stays as it is.
    """
    before, like = linear_bytes(model), model.embed_tokens.weight
    members: dict[str, int] = {}
    for name, spectrum in spectra:
        if name not in ranks:
            continue
        Us_oR, V_Ri = spectrum.member_factors(ranks[name])
        paths = group_members(name)
        members |= dict.fromkeys(paths, ranks[name])
        factors = {path: stored_factor(U_oR, like) for path, U_oR in zip(paths, Us_oR, strict=True)}
        if len(paths) == 1:
            replace_linear(model, paths[0], LowRankLinear(factors[paths[0]], stored_factor(V_Ri, like)))
        else:
            replace_group(model, factors, stored_factor(V_Ri, like))
    return CompressionReport(bytes_before=before, bytes_after=linear_bytes(model), ranks=members)


def stored_factor(factor: Tensor, like: Tensor) -> Tensor:
    """A factor cut loose from its spectrum, row-major, in the model's dtype and on its device."""
    return factor.to(like, copy=True, memory_format=torch.contiguous_format)


def _of(statistics: Mapping[str, Tensor] | None, name: str) -> Tensor | None:
    return None if statistics is None else statistics[name]


def _spectrum(left_oK: Tensor, right_Ki: Tensor, energy_K: Tensor) -> Spectrum:
    return Spectrum(left_oK=left_oK, right_Ki=right_Ki, energy_K=energy_K, rows=(len(left_oK),))


def _damped_outputs(R_Ki: Tensor, gram_ii: Tensor, share: float) -> Tensor:
    """R (G + eps I) R^T, the Gram of the outputs, without a second G."""
    outputs_KK = R_Ki @ gram_ii @ R_Ki.T
    return outputs_KK if share == 0 else outputs_KK + share * gram_ii.diagonal().mean() * (R_Ki @ R_Ki.T)


def _plus_diagonal(matrix: Tensor, extra: float) -> Tensor:
    return matrix + extra * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def damped_root(covariance_DD: Tensor, share: float = 1e-6) -> Tensor:
    """Lower triangular L in float64, C = L L^T, so much of C's mean eigenvalue being added to its diagonal."""
    C = covariance_DD.double()
    return torch.linalg.cholesky(_plus_diagonal(C, share * float(C.diagonal().mean())))


def _triangle(weight_oK: Tensor) -> Tensor | None:
    """R of W = Q R for a tall W, from W^T W alone; None where squaring W would lose too many digits of it."""
    R_KK, failed = torch.linalg.cholesky_ex(weight_oK.T @ weight_oK, upper=True)
    sizes_K = R_KK.diagonal().abs()
    return None if failed.item() or sizes_K.min() < _WELL_CONDITIONED * sizes_K.max() else R_KK


def eigenpairs(matrix: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues, not below zero, and eigenvectors as columns, the largest first: of these as many as the rank, or all."""
    with _one_thread():
        values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0).clamp_min(0), vectors[:, len(values) - (rank or len(values)) :].flip(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within the block processors compute on one thread: an eigenproblem's many short steps wait for every thread, and where
    another process holds a core they wait for that (n = 1536: 1.5 s on one thread, 29 s on two).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """M^1/2 and M^-1/2 of a Gram; where M is all zero nothing is known of the outputs, and both are I."""
    with _one_thread():
        values, vectors = torch.linalg.eigh(matrix)
    largest = values.max()
    values = torch.where(largest > 0, values.clamp_min(_FLOOR * largest), torch.ones_like(values))
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T
