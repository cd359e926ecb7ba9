"""What rounding lost, in part given back: W ~ Q + L R, Q of few bits, L (d_out, R) and R (R, d_in) dense.

    plain:        Q = quant(W);  L R = the best rank of W - Q
    loftq:        the same in turns, Q = quant(W - L R), in the same metric       Li et al. 2023, arXiv:2310.08659
    whitened:     Q = quant(W);  L R = the best rank of W - Q for what is read    QERA, arXiv:2410.06040
    alternating:  the same in turns

"For what is read" is |(W - Q - L R) X|, with G = X X^T of calibration text: the closed form of low_rank.py, applied to what
rounding left. Of the turns the one with the least loss counts, so none is worse than the first. docs/compression.md 4.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from puna.arch.rounding import Rounding
from puna.compression.low_rank import Spectrum, decompose, stored_factor
from puna.errors import UsageError, unknown_name
from puna.model.linears.corrected import CorrectedLinear
from puna.model.linears.dequantised import DequantisedLinear
from puna.model.linears.rounded import rounded

__all__ = ["CORRECTIONS", "Correction", "correct"]

Correction = Literal["plain", "loftq", "whitened", "alternating"]
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)
_TURNS = 5


@torch.no_grad()
def correct(
    weight_oi: Tensor, to: Rounding, rank: int, correction: Correction = "alternating", gram_ii: Tensor | None = None
) -> tuple[CorrectedLinear, float]:
    """Round a weight and correct it; factors in the weight's type.

    Args:    gram_ii: X X^T of what it reads; needed by `whitened` and `alternating`, unused by the others.
    Returns: the Linear, and what it still loses: |W - Q - L R|^2, or of (W - Q - L R) X; squared.
    Errors:  UsageError: an unknown correction; a rank outside 1..min(d_out, d_in).
    """
    if correction not in CORRECTIONS:
        raise unknown_name("correction", correction, CORRECTIONS)
    if not 1 <= rank <= min(weight_oi.shape):
        raise UsageError(f"residual rank: expected 1 to {min(weight_oi.shape)}, got {rank}", "16 is usual")
    metric = gram_ii if correction in ("whitened", "alternating") else None
    assert metric is not None or correction in ("plain", "loftq"), "what is read is not known"
    weight, found = weight_oi.double(), None
    target = weight
    for _ in range(_TURNS if correction in ("loftq", "alternating") else 1):
        base = rounded(target.to(weight_oi.dtype), to)
        spectrum = decompose(weight - base.dense_weight().double(), metric)
        loss = spectrum.loss(rank)
        if found is None or loss < found[1]:
            found = _linear(base, spectrum, rank, weight_oi), loss
        L_oR, R_Ri = spectrum.factors(rank)
        target = weight - L_oR @ R_Ri
    assert found is not None
    return found


def _linear(base: DequantisedLinear, spectrum: Spectrum, rank: int, like: Tensor) -> CorrectedLinear:
    return CorrectedLinear(base, *(stored_factor(part, like) for part in spectrum.factors(rank)))
