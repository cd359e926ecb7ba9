"""Whether vectors know which sentences belong together: adjacent pairs of a text against random pairs of the same sentences.

    S_ij = <a_i, b_j>,  a_k and b_k the vectors of the first and the second sentence of adjacent pair k of M
    AUC  = P(S_kk > S_ij) + P(S_kk = S_ij) / 2  over every k and every i != j

1/2 is chance; 1 says that every adjacent pair is closer than every other. All M(M-1) other pairs are counted, nothing is
drawn. Each sentence stands in one adjacent pair, and in other pairs as often as any: how long it is cannot tell them apart.
The standard error is the jackknife's over k: without pair k its two sentences are in no other pair either.
Sources: Mann & Whitney 1947, Annals of Mathematical Statistics 18, 50-60, ties by half; Efron & Stein 1981, Annals of
Statistics 9, 586-596.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.errors import BadData

__all__ = ["Closeness", "adjacent_pairs", "judge_pairs", "rank_pairs", "split_sentences"]

_FEWEST_PAIRS = 10
_MOST_PAIRS = 1000  # a standard error near 0.01; S is M x M
_STEP = 3  # from one pair's first sentence to the next one's: no two pairs touch
_PARAGRAPH = re.compile(r"\n\s*\n")
# A mark before a blank, unless a small letter follows (e.g. this), with the quotes it closes; or one that needs no blank.
_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=$| [^a-z])|[。！？]++[」』”’）]*+""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """How often an adjacent pair is closer than another, over so many adjacent pairs."""

    auc: float
    standard_error: float
    pairs: int


def adjacent_pairs(documents: Iterable[str]) -> list[tuple[str, str]]:
    """Neighbouring sentences of one paragraph, no sentence twice; of more than 1,000 pairs so many, evenly spread.

    Raises: BadData: fewer than 10.
    """
    paragraphs = [found for document in documents for found in split_sentences(document)]
    pairs = [(each[i], each[i + 1]) for each in paragraphs for i in range(0, len(each) - 1, _STEP)]
    if len(pairs) < _FEWEST_PAIRS:
        raise BadData(
            f"adjacent sentences: expected at least {_FEWEST_PAIRS} pairs that do not touch, got {len(pairs)}",
            "judge a longer text: prose whose sentences end in . ! ? or 。！？",
        )
    count = min(len(pairs), _MOST_PAIRS)
    return [pairs[index * len(pairs) // count] for index in range(count)]


def split_sentences(text: str) -> Iterator[list[str]]:
    """Each paragraph's sentences. A line end is a blank, a blank line ends a paragraph, and what ends without a mark (a
    heading, a verse) is no sentence.
    """
    for paragraph in _PARAGRAPH.split(text):
        line = " ".join(paragraph.split())
        ends = [match.end() for match in _END.finditer(line)]
        yield [line[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]


def judge_pairs(first_MD: Tensor, second_MD: Tensor) -> Closeness:
    """How often an adjacent pair is closer. Args: first_MD, second_MD: unit vectors of their sentences, three at least."""
    return rank_pairs((first_MD.double() @ second_MD.double().T).float())  # what rounding adds makes no rank


def rank_pairs(similarity_MM: Tensor) -> Closeness:
    """The AUC of the diagonal against everything beside it, exactly, with its standard error."""
    pairs = len(similarity_MM)
    beside_MM = ~torch.eye(pairs, dtype=torch.bool)
    adjacent_M = similarity_MM.diagonal().contiguous()
    won_MM = (pairs - _below(adjacent_M, similarity_MM)) * beside_MM  # by adjacent pairs, over (i, j)
    won_M = _below(similarity_MM[beside_MM], adjacent_M)  # by adjacent pair k, over all the others
    own_MM = (_over(adjacent_M[:, None], similarity_MM) + _over(adjacent_M[:, None], similarity_MM.T)) * beside_MM
    total = won_MM.sum()
    without_M = total - won_M - won_MM.sum(0) - won_MM.sum(1) + own_MM.sum(1)
    aucs_M = without_M / ((pairs - 1) * (pairs - 1) * (pairs - 2))
    spread = float((aucs_M - aucs_M.mean()).square().sum())
    return Closeness(
        auc=float(total) / (pairs * pairs * (pairs - 1)),
        standard_error=math.sqrt(spread * (pairs - 1) / pairs),
        pairs=pairs,
    )


def _below(scores_N: Tensor, marks: Tensor) -> Tensor:
    """How many scores are below each mark, those equal to it by half."""
    ranked_N = scores_N.sort().values
    return (torch.searchsorted(ranked_N, marks) + torch.searchsorted(ranked_N, marks, right=True)).double() / 2


def _over(a: Tensor, b: Tensor) -> Tensor:
    """1 where a > b, 1/2 where they are equal, else 0."""
    return ((a > b).double() + (a >= b).double()) / 2
