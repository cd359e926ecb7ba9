"""A preview head: its choice is always the head's own; what it reads in full is little where the head has few directions."""

import pytest
import torch
from torch import Tensor

from puna.compression.embeddings import collect_table_statistics
from puna.compression.preview_head import PreviewHead
from puna.errors import UsageError
from puna.generation.decode import greedy_ids
from puna.model.llama import Llama

V, D = 600, 24


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sloped(share: float) -> Tensor:
    """Rows whose last direction is so large a share of the first, and a mean that is none of their own."""
    return drawn(V, D) * torch.logspace(0, float(torch.tensor(share).log10()), D) + drawn(D, seed=9)


def covariance(hidden_ND: Tensor) -> Tensor:
    return hidden_ND.T.double() @ hidden_ND.double() / len(hidden_ND)


@pytest.mark.parametrize(("rank", "proved"), [(1, 0), (6, 0), (12, 190), (D - 1, 200)])
def test_the_choice_is_the_heads_own(rank: int, proved: int) -> None:
    weight_VD, hidden_ND = sloped(1e-3), drawn(200, D, seed=1)
    head = PreviewHead(weight_VD, covariance(hidden_ND), rank, candidates=3)
    choices = [head.choose(hidden_D) for hidden_D in hidden_ND]
    assert [choice.token for choice in choices] == [int((weight_VD @ hidden_D).argmax()) for hidden_D in hidden_ND]
    assert sum(choice.scored < V for choice in choices) >= proved


@pytest.mark.parametrize("rank", [1, 6, D - 1])
def test_no_score_is_further_off_than_its_bound(rank: int) -> None:
    weight_VD, hidden_ND = sloped(0.1), drawn(50, D - 1, seed=1) @ drawn(D - 1, D, seed=2)  # D - 1 directions are read
    head = PreviewHead(weight_VD, covariance(hidden_ND), rank)
    for hidden_D in hidden_ND:
        exact_V = (weight_VD - weight_VD.double().mean(0)) @ hidden_D.double()
        scores_V, bound_V = head.preview(hidden_D)
        assert ((scores_V - exact_V).abs() <= bound_V).all()
    assert (bound_V < 0.01 * exact_V.abs().max()).all() == (rank == D - 1)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_to_the_head_itself(broken: float) -> None:
    weight_VD, hidden_D = sloped(1e-4), drawn(D, seed=1)
    hidden_D[3] = broken
    choice = PreviewHead(weight_VD, torch.eye(D), 12).choose(hidden_D)
    assert (choice.token, choice.scored) == (int((weight_VD @ hidden_D).argmax()), V)


def test_a_head_of_16_bits_is_refused() -> None:
    with pytest.raises(UsageError, match="expected float32"):
        PreviewHead(drawn(V, D).bfloat16(), torch.eye(D), 4)


def test_a_wrong_guess_is_found_out() -> None:
    weight_VD, hidden_ND = sloped(0.3), drawn(200, D, seed=1)
    head = PreviewHead(weight_VD, covariance(hidden_ND), 6, candidates=1)
    choices = [head.choose(hidden_D) for hidden_D in hidden_ND]
    wrong = [choice for choice in choices if choice.guess != choice.token]
    assert wrong
    assert all(choice.scored > 1 for choice in wrong)


def test_a_head_of_few_directions_is_proved_by_few_rows() -> None:
    weight_VD, hidden_ND = sloped(1e-4), drawn(200, D, seed=1)
    head = PreviewHead(weight_VD, covariance(hidden_ND), 12, candidates=8)
    assert sum(head.choose(hidden_D).scored for hidden_D in hidden_ND) < 0.02 * V * len(hidden_ND)


def test_directions_that_the_head_never_reads_are_left_out() -> None:
    weight_VD, hidden_ND = drawn(V, D), drawn(200, 6, seed=1) @ drawn(6, D, seed=2)
    known = PreviewHead(weight_VD, covariance(hidden_ND), 6)
    unknown = PreviewHead(weight_VD, torch.eye(D), 6)
    assert all(known.choose(hidden_D).scored < V / 20 for hidden_D in hidden_ND)
    assert sum(unknown.choose(hidden_D).scored for hidden_D in hidden_ND) > V * len(hidden_ND) / 2


def test_equal_rows_are_left_to_the_head_itself() -> None:
    weight_VD, hidden_D = sloped(1e-4), drawn(D, seed=1)
    weight_VD[77] = weight_VD[500] = 10 * hidden_D
    choice = PreviewHead(weight_VD, torch.eye(D), 12).choose(hidden_D)
    assert (choice.token, choice.scored) == (int((weight_VD @ hidden_D).argmax()), V)


def test_greedy_text_is_the_same(tiny: Llama) -> None:
    prompt = list(range(5, 25))
    statistics = collect_table_statistics(tiny, [torch.tensor([prompt])])
    head = PreviewHead(tiny.lm_head.weight.detach(), statistics.hidden_DD, tiny.config.dim // 4)
    chosen: list[int] = []

    def choose(hidden_D: Tensor) -> int:
        chosen.append(head.choose(hidden_D).token)
        return chosen[-1]

    assert greedy_ids(tiny, prompt, 40, choose) == greedy_ids(tiny, prompt, 40) == chosen


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"rank": D}, {"rank": 4, "candidates": 0}, {"rank": 4, "candidates": V + 1}]
)
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="preview"):
        PreviewHead(drawn(V, D), torch.eye(D), **wrong)
