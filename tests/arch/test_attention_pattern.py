"""The pattern's mask and its count must be the same set of pairs."""

import pytest
import torch

from puna.arch.attention_pattern import Causal


@pytest.mark.parametrize("tokens", [1, 2, 7, 100])
def test_the_count_of_visible_pairs_equals_the_mask(tokens: int) -> None:
    index = torch.arange(tokens)
    assert Causal().attended(tokens) == int(Causal().allows(index[:, None], index[None, :]).sum())


def test_a_query_sees_itself_and_nothing_later() -> None:
    assert [Causal().allows(3, key) for key in range(6)] == [True, True, True, True, False, False]
    assert Causal().horizon is None
