import pytest

from puna.topics.explain import explain


@pytest.mark.parametrize("text", ["The cat sleeps on the sofa.", "貓在沙發上睡覺。", "aaaa abab 12345\n\n  x🐈", "a"])
def test_merges_by_hand_are_the_engines_in_order(text):
    numbers = explain("bpe", model="tiny", text=text).numbers
    shown = numbers["model"]
    assert shown["ids_difference"] == shown["round_trip_difference"] == numbers["learned"]["learned_difference"] == 0
    assert shown["text_bytes"] - shown["merges"] == shown["text_tokens"]


def test_a_merge_joins_its_two_sides_and_counts_fall_as_a_vocabulary_is_learned():
    numbers = explain("bpe", model="tiny", text="low lower lowest").numbers
    learned = numbers["learned"]["learned_in_order"].values
    assert learned[0] == (3, "[l]", "[o]", "[lo]")
    assert learned[1] == (3, "[lo]", "[w]", "[low]")
    assert [count for count, *_ in learned] == sorted((count for count, *_ in learned), reverse=True)


def test_the_released_vocabularies_are_the_ledgers():
    grid = explain("bpe", model="llama-3-8b").numbers["released"]["vocabularies"]
    assert [row[1] for row in grid.values] == [32_000, 32_000, 128_256]
