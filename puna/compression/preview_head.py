"""A greedy head that reads a part of itself: leading directions name candidates, exact scores choose, a bound proves it.

    C = L L^T, C = E[h h^T];   (W - 1 m^T) L = P S Q^T;   A = P S, t = Q^T L^-1 h:   z = A t, the scores less m . h
    preview   z^ = A[:, :K] t[:K];   the best few tokens are scored exactly, by the head's own rows
    bound     |z_v - z^_v| <= |A[v, K:]| |t[K:]|   (row norms, formed once)

A token whose z^ + bound stays below the best exact score cannot be the arg-max. Those that might be are scored exactly too: all
of the head where they are many. m, the mean row, moves all scores alike. Source: Shim et al. 2017 (SVD-Softmax), whose candidates
are not proved; docs/compression.md 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from puna.compression.low_rank import damped_root, eigenpairs
from puna.errors import UsageError

__all__ = ["Choice", "PreviewHead"]

_MANY = 8  # rivals from an eighth of the vocabulary on cost as much as the head itself: a gather is slower than a sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """token: the head's arg-max, proved. guess: the best of the candidates, before the proof. scored: rows read in full."""

    token: int
    guess: int
    scored: int


class PreviewHead:
    """The arg-max of W h for one h, mostly from K of D columns, float32. V (K + 1) + 2 D D numbers stand beside W; it is made in
    float64: 16 bytes for each number of W.
    """

    def __init__(self, weight_VD: Tensor, covariance_DD: Tensor, rank: int, candidates: int = 256) -> None:
        """Args: covariance_DD: of what the head reads (`collect_table_statistics`). rank: K. Errors: UsageError."""
        vocabulary, dim = weight_VD.shape
        if weight_VD.dtype != torch.float32:
            raise UsageError(
                f"preview head: expected float32, got {weight_VD.dtype}", "16-bit scores tie: widen the head"
            )
        limits = ("rank", rank, dim - 1, f"{dim // 4} is a"), ("candidates", candidates, vocabulary, "64 are a")
        for name, value, most, usual in limits:
            if not 1 <= value <= most:
                raise UsageError(f"preview {name}: expected 1 to {most}, got {value}", f"{usual} beginning")
        self.weight_VD, self.rank, self.candidates = weight_VD, rank, candidates
        L_DD = damped_root(covariance_DD)
        self.mean_D = weight_VD.double().mean(dim=0)
        centred_VD = weight_VD.double() - self.mean_D
        _, Q_DD = eigenpairs(L_DD.T @ (centred_VD.T @ centred_VD) @ L_DD)
        A_VD = centred_VD @ (L_DD @ Q_DD)
        self.turn_DD = torch.linalg.solve_triangular(L_DD.T, Q_DD, upper=True).T.contiguous()
        self.lead_VK = A_VD[:, :rank].float().contiguous()
        self.tail_V = A_VD[:, rank:].norm(dim=1).float()
        unit = torch.finfo(torch.float32).eps  # what follows is rounding in any order of summing,
        self._rounding = unit * (rank + 3) * float(A_VD.norm(dim=1).max())  # of z^, for |t| = 1
        self._exact = (
            unit * dim * float(weight_VD.norm(dim=1).max())
        )  # and of the difference of two scores, for |h| = 1

    def preview(self, hidden_D: Tensor) -> tuple[Tensor, Tensor]:
        """(scores_V, bound_V): what K columns say of each token's score, less the mean row's, and how far that may be off."""
        t_D = self.turn_DD @ hidden_D.double()
        scores_V = self.lead_VK @ t_D[: self.rank].float()
        return scores_V, self.tail_V * float(t_D[self.rank :].norm()) + self._rounding * float(t_D.norm())

    def choose(self, hidden_D: Tensor) -> Choice:
        """What `(W @ h).argmax()` gives."""
        h_D, (seen_V, bound_V) = hidden_D.double(), self.preview(hidden_D)
        candidates_C = seen_V.topk(self.candidates).indices
        scores_C = self.weight_VD[candidates_C] @ hidden_D
        close = self._exact * float(h_D.norm())
        best = float(scores_C.max() - self.mean_D @ h_D)
        is_beaten_V = seen_V + bound_V < best - close  # none where something is NaN
        token, scored = self._proved((~is_beaten_V).nonzero()[:, 0], hidden_D, close)
        return Choice(token=token, guess=int(candidates_C[scores_C.argmax()]), scored=scored)

    def _proved(self, rivals_R: Tensor, hidden_D: Tensor, close: float) -> tuple[int, int]:
        """The best of those that may be the best, and how many rows it took; two that are close are left to the head itself."""
        if len(rivals_R) * _MANY <= len(self.weight_VD):
            scores_R = self.weight_VD[rivals_R] @ hidden_D
            best = scores_R.max()
            if int((scores_R >= best - close).sum()) == 1:
                return int(rivals_R[scores_R.argmax()]), len(rivals_R)
        return int((self.weight_VD @ hidden_D).argmax()), len(self.weight_VD)
