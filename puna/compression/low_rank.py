"""Low-rank weights: the best W' = U V of rank r, by plain truncated SVD or for the inputs that W really reads.

    svd:       min |W - W'|       W = P S Q^T;  U = P_r S_r^1/2, V = S_r^1/2 Q_r^T;     loss = sum_{i>r} s_i^2
    whitened:  min |(W - W') X|   W G W^T = P L P^T with G = X X^T;  U = P_r, V = P_r^T W;  loss = sum_{i>r} l_i

`whitened` is SVD-LLM's optimum in the form of a PCA of the outputs: no inverse and no root of G, so a singular G is
no special case. A tall W = Q R is treated as R, the outputs then being rotated back by Q: no matrix is wider than
min(d_out, d_in). One decomposition serves every rank.
Sources: Eckart & Young 1936; Wang et al. 2024, arXiv:2403.07378; Swift-SVD, arXiv:2604.01609; docs/compression.md 1.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.compression.allocation import linear_bytes
from puna.model.linears.kind import dense_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import named_linears, replace_linear

__all__ = ["CompressionReport", "Spectrum", "compress_low_rank", "decompose", "decompose_linears"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """One matrix as a sum of min(d_out, d_in) rank-1 components, the most valuable first; float64.

    left_oK, right_Ki: W = left right; component i is left[:, i] right[i].
    energy_K:          what leaving out component i costs, in the units of its method's loss.
    """

    left_oK: Tensor
    right_Ki: Tensor
    energy_K: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """U (d_out, rank) and V (rank, d_in), views in float64."""
        return self.left_oK[:, :rank], self.right_Ki[:rank]

    def loss(self, rank: int) -> float:
        """The exact loss of `factors(rank)`: |W - W'|^2, or |(W - W') X|^2 where whitened."""
        return float(self.energy_K[rank:].flip(0).sum())  # smallest first keeps the digits


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionReport:
    """What the block Linears stored before and after, and the rank of each that was factorised."""

    bytes_before: int
    bytes_after: int
    ranks: dict[str, int]


@torch.no_grad()
def decompose(weight_oi: Tensor, gram_ii: Tensor | None = None) -> Spectrum:
    """Decompose a weight once for every rank, in float64.

    Args: gram_ii: X X^T of the weight's inputs X (d_in, tokens): whitened; None: plain SVD.
    """
    weight = weight_oi.double()
    if gram_ii is None:
        P_oK, s_K, Qt_Ki = torch.linalg.svd(weight, full_matrices=False)
        root_K = s_K.sqrt()
        return Spectrum(left_oK=P_oK * root_K, right_Ki=root_K[:, None] * Qt_Ki, energy_K=s_K.square())
    Q_oK, R_Ki = torch.linalg.qr(weight)
    energy_K, P_KK = torch.linalg.eigh(R_Ki @ gram_ii @ R_Ki.T)
    P_KK = P_KK.flip(1)
    return Spectrum(left_oK=Q_oK @ P_KK, right_Ki=P_KK.T @ R_Ki, energy_K=energy_K.flip(0).clamp_min(0))


def decompose_linears(model: Llama, grams: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Spectrum]]:
    """(path, Spectrum) of every block Linear, one at a time; kept in a dict they serve any number of sizes."""
    for path, linear in named_linears(model):
        yield path, decompose(dense_weight(linear), None if grams is None else grams[path])


def compress_low_rank(
    model: Llama, spectra: Iterable[tuple[str, Spectrum]], ranks: Mapping[str, int]
) -> CompressionReport:
    """Replace, in place, each block Linear that has a rank by its two factors, in the model's dtype.

    Args: spectra: from `decompose_linears`, of this model or of the one it is a copy of.
          ranks: by path, from `allocation`; a path that is absent stays as it is.
    """
    before = linear_bytes(model)
    for path, spectrum in spectra:
        if path in ranks:
            U_oR, V_Ri = (_stored(factor, model.embed_tokens.weight) for factor in spectrum.factors(ranks[path]))
            replace_linear(model, path, LowRankLinear(U_oR, V_Ri))
    return CompressionReport(bytes_before=before, bytes_after=linear_bytes(model), ranks=dict(ranks))


def _stored(factor: Tensor, like: Tensor) -> Tensor:
    """A factor cut loose from its spectrum, row-major, in the model's dtype and on its device."""
    return factor.to(like, copy=True, memory_format=torch.contiguous_format)
