"""The embedding alive: the ledger's rows 001-01, 001-05 and 001-17."""

import pytest

from puna.topics.explain import explain


def test_the_snippets_shape_and_weights_are_the_notes():
    example = explain("embedding", model="llama-3-8b").numbers["example"]
    assert (example["output_shape"], example["table_parameters"]) == ([4, 512], 5_120_000)
    assert (example["rows_with_gradient"], example["one_hot_difference"]) == (4, 0)


def test_a_character_has_an_id_numbers_a_length_and_neighbours():
    shown = explain("embedding", model="tiny", text="猫")
    vectors, nearest = (shown.numbers["model"][name] for name in ("vectors", "nearest"))
    assert [row.split()[1] for row in vectors.rows] == list(shown.tokens) == ["<|begin_of_text|>", "猫"]
    assert vectors.columns[:2] == ["id", "length"]
    assert vectors.values[1][1] == pytest.approx(0.1567, abs=1e-4)
    assert "猫" not in " ".join(nearest.values[1])
    cosines = [float(each.split()[-1]) for each in nearest.values[1]]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] < 1


def test_a_row_looked_up_is_the_one_hot_product_to_the_bit():
    assert explain("embedding", model="tiny").numbers["model"]["one_hot_difference"] == 0


def test_of_the_8b_the_table_is_counted():
    model = explain("embedding", model="llama-3-8b").numbers["model"]
    assert (model["table_parameters"], model["gather_flops"]) == (525_336_576, 0)
    assert "vectors" not in model
