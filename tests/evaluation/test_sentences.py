"""Adjacent sentences: how they are found, and the rank of their pairs against counting by hand and simulation."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from puna.errors import BadData
from puna.evaluation.sentences import adjacent_pairs, judge_pairs, rank_pairs, split_sentences


def scores(pairs: int, seed: int, ties: bool) -> Tensor:
    made = torch.randn(pairs, pairs, generator=torch.Generator().manual_seed(seed)) + 0.5 * torch.eye(pairs)
    return (made * 2).round() if ties else made


def counted(similarity: Tensor, kept: list[int]) -> float:
    """The AUC by comparing every adjacent pair with every other, of the pairs that are kept."""
    won = [
        (float(similarity[k, k] > similarity[i, j]) + float(similarity[k, k] >= similarity[i, j])) / 2
        for k in kept
        for i, j in itertools.permutations(kept, 2)
    ]
    return sum(won) / len(won)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("pairs", [3, 4, 9])
def test_the_rank_and_its_error_are_those_of_counting(pairs: int, ties: bool) -> None:
    for seed in range(5):
        similarity = scores(pairs, seed, ties)
        found = rank_pairs(similarity)
        everyone = list(range(pairs))
        without = [counted(similarity, [k for k in everyone if k != left]) for left in everyone]
        mean = sum(without) / pairs
        error = math.sqrt(sum((auc - mean) ** 2 for auc in without) * (pairs - 1) / pairs)
        assert found.auc == pytest.approx(counted(similarity, everyone), abs=1e-12)
        assert found.standard_error == pytest.approx(error, abs=1e-12)
        assert found.pairs == pairs


@pytest.mark.parametrize(("diagonal", "auc"), [(1.0, 1.0), (0.0, 0.5), (-1.0, 0.0)])
def test_scores_that_part_or_are_equal_give_the_whole_the_half_and_nothing(diagonal: float, auc: float) -> None:
    found = rank_pairs(diagonal * torch.eye(12))
    assert found.auc == auc
    assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_vectors_that_are_all_alike_are_chance() -> None:
    vector = F.normalize(torch.randn(1, 256, generator=torch.Generator().manual_seed(0)), dim=1).expand(50, 256)
    assert judge_pairs(vector, vector).auc == 0.5


def test_pairs_are_judged_by_their_cosines() -> None:
    first, second = F.normalize(torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    similarity = torch.stack([F.cosine_similarity(each, second) for each in first])
    assert judge_pairs(first, second).auc == pytest.approx(counted(similarity, list(range(20))), abs=1e-3)


def test_the_error_is_how_much_samples_differ() -> None:
    """Vectors that share a part with their neighbour, 300 times anew."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(300):
        shared, own_a, own_b = torch.randn(3, 40, 6, generator=generator)
        found.append(judge_pairs(*(F.normalize(0.5 * shared + own, dim=1) for own in (own_a, own_b))))
    spread = float(torch.tensor([each.auc for each in found]).std())
    claimed = sum(each.standard_error**2 for each in found) / len(found)
    assert 0.55 < sum(each.auc for each in found) / len(found) < 0.75
    assert math.sqrt(claimed) == pytest.approx(spread, rel=0.15)


def test_a_paragraph_is_split_where_sentences_end() -> None:
    text = """A Heading\n\nThe first one,
over two lines. "Quoted!" Then 3.14 costs, e.g. a little ... or more… Is it? Yes .\r\n \r\nNo mark here
春眠不覺曉。「處處聞啼鳥！」夜來風雨聲，花落知多少？"""
    assert list(split_sentences(text)) == [
        [],
        [
            "The first one, over two lines.",
            '"Quoted!"',
            "Then 3.14 costs, e.g. a little ... or more…",
            "Is it?",
            "Yes .",
        ],
        ["No mark here 春眠不覺曉。", "「處處聞啼鳥！」", "夜來風雨聲，花落知多少？"],
    ]


@pytest.mark.parametrize("unit", [".", "a", "\n", '."', "a.b ", "。」"])
def test_a_text_is_split_in_time_that_grows_with_it(unit: str) -> None:
    assert sum(map(len, split_sentences(unit * 200_000))) >= 0


def test_pairs_stay_within_a_paragraph_and_do_not_touch() -> None:
    paragraphs = [" ".join(f"{name}{number}." for number in range(8)) for name in "ABCD"]
    pairs = adjacent_pairs(["\n\n".join(paragraphs[:2]), *paragraphs[2:]])
    assert pairs == [(f"{name}{start}.", f"{name}{start + 1}.") for name in "ABCD" for start in (0, 3, 6)]


def test_of_many_pairs_a_thousand_are_taken_evenly() -> None:
    pairs = adjacent_pairs([" ".join(f"N{number}." for number in range(7500))])
    starts = [int(first[1:-1]) for first, _ in pairs]
    steps = {later - earlier for earlier, later in itertools.pairwise(starts)}
    assert len(pairs) == 1000
    assert steps == {6, 9}
    assert starts[0] < 10
    assert starts[-1] > 7480


def test_too_few_sentences_are_no_judge() -> None:
    with pytest.raises(BadData, match="at least 10 pairs that do not touch, got 2") as caught:
        adjacent_pairs(["One. Two.", "Three. Four.", "Five."])
    assert "longer" in caught.value.hint
