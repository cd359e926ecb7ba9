"""Sparse attention as `puna explain sparse-attention` shows it."""

import pytest

from puna.topics.explain import ExplainResult, explain, find_topic
from puna.topics.subject import find_subject
from puna.topics.words import topic_words


@pytest.fixture(scope="module")
def result() -> ExplainResult:
    return explain("sparse-attention", model="tiny")


def test_pairs_are_counted_exactly(result) -> None:
    every, causal, window, _sinks, blocks, shifted = [row[1] for row in result.numbers["example"]["pairs"].values]
    n, w, b = 8192, 256, 256
    assert (every, causal) == (n * n, n * (n + 1) // 2)
    assert window == n * w - w * (w - 1) // 2
    assert blocks == n * (b + 1) // 2
    assert 2 * shifted == 2 * blocks - (b // 2) ** 2
    assert result.numbers["example"]["notes_block_pairs"][1] == n * n // (n // b)


def test_a_softmax_over_the_neighbours_sums_to_one_and_is_the_engines(result) -> None:
    model = result.numbers["model"]
    assert model["row_sums"] == pytest.approx([1.0] * len(result.tokens))
    assert max(model["row_sums_cut_after"]) < 0.9
    assert model["dense_difference"] <= 1e-6
    assert model["pieces_difference"] <= 1e-6


def test_who_sees_whom(result) -> None:
    seen = result.numbers["model"]["seen"]
    assert list(seen.values[7]) == ["0-7", "5-7", "0 5-7", "4-7", "4-7 | 6-7"]


def test_nothing_crosses_blocks_and_a_window_reaches_two_tokens_further_with_each_layer(result) -> None:
    reach = result.numbers["reach"]
    assert reach["gradient_from_later_tokens"] == reach["gradient_across_blocks"] == 0
    assert reach["gradient_across_shifted_blocks"] > 0
    _causal, window, _sinks, blocks, shifted = reach["reach_tokens"].values
    assert (list(window), list(blocks), list(shifted)) == ([2, 4, 6, 8], [3] * 4, [3, 5, 7, 9])


def test_every_pattern_has_a_picture_of_who_sees_whom() -> None:
    pictures = (
        find_topic("sparse-attention")
        .show(find_subject("llama-3-8b", None, None, "en"), topic_words("sparse-attention", "en"))
        .pictures
    )
    assert set(pictures) == set(topic_words("sparse-attention", "en").pictures)
    assert list(pictures["sparse-attention-window"].values[5]) == [0, 0, 0, None, None, None, 0, 0, 0, 0, 0, 0]
    assert list(pictures["sparse-attention-shifted"].values[5]) == [0, 0, 0.5, 0.5, None, None, 0, 0, 0, 0, 0, 0]
