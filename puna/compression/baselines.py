"""Published ways to low rank that puna's own is measured against, as their papers have them.

    ASVD:        W T = P S Q^T, T = diag(mean abs(x_j)^alpha);  U = P_r S_r^1/2, V = S_r^1/2 Q_r^T T^-1
    SVD-LLM (W): W L = P S Q^T, L L^T = G + eps I (Cholesky);   U = P_r S_r^1/2, V = S_r^1/2 Q_r^T L^-1

SVD-LLM's is `whitened` of low_rank.py wherever G has a Cholesky factor, and needs damping where it has none.
Sources: Yuan et al. 2023, arXiv:2312.05821; Wang et al. 2024, arXiv:2403.07378; docs/compression.md 1.
"""

import torch
from torch import Tensor

from puna.compression.low_rank import Spectrum, balanced
from puna.errors import BadData

__all__ = ["decompose_cholesky", "decompose_scaled"]

_LEAST_SCALE = 1e-6


@torch.no_grad()
def decompose_scaled(weight_oi: Tensor, magnitude_i: Tensor, alpha: float = 0.5) -> Spectrum:
    """ASVD. Args: magnitude_i: mean of abs(x) of each input channel. The energies are those of W T, not of any output."""
    weight, scale_i = weight_oi.double(), magnitude_i.double().pow(alpha).clamp_min(_LEAST_SCALE)
    P_oK, s_K, Qt_Ki = torch.linalg.svd(weight * scale_i, full_matrices=False)
    return balanced(P_oK, s_K, Qt_Ki / scale_i)


@torch.no_grad()
def decompose_cholesky(weight_oi: Tensor, gram_ii: Tensor, damping: float = 0.0) -> Spectrum:
    """SVD-LLM (W).

    Args:   gram_ii: X X^T of the inputs. damping: added to its diagonal, as a share of its mean eigenvalue.
    Errors: BadData: the damped Gram is not positive definite.
    """
    gram_ii = gram_ii.double()
    eps = damping * gram_ii.diagonal().mean()
    factor_ii, failed = torch.linalg.cholesky_ex(gram_ii + eps * torch.eye(len(gram_ii)).to(gram_ii))
    if failed.item():
        raise BadData(
            f"calibration: expected a positive definite Gram, got a singular one with damping {damping}",
            "raise the damping, or use the whitened solver",
        )
    P_oK, s_K, Qt_Ki = torch.linalg.svd(weight_oi.double() @ factor_ii, full_matrices=False)
    return balanced(P_oK, s_K, torch.linalg.solve_triangular(factor_ii, Qt_Ki, upper=False, left=False))
