"""Sinusoidal positions as `puna explain sinusoidal` shows them."""

import pytest

from puna.topics.explain import explain


def test_the_notes_five_words_have_vectors_of_one_length_that_begin_at_0_1() -> None:
    example = explain("sinusoidal", model="tiny", text="猫 在 沙发 上 睡觉").numbers["example"]
    assert [row.split()[1] for row in example["vectors"].rows] == ["猫", "在", "沙发", "上", "睡觉"]
    assert list(example["vectors"].values[0]) == [0, 1] * 4
    assert example["squared_norms"] == pytest.approx([4.0] * 5)


def test_a_shift_is_a_rotation_and_products_depend_on_the_distance() -> None:
    example = explain("sinusoidal", model="tiny").numbers["example"]
    assert example["shift_difference"] <= 1e-6
    products = example["products"].values
    assert all(products[m][n] == pytest.approx(products[0][abs(m - n)]) for m in range(5) for n in range(5))


def test_the_models_vectors_have_squared_length_half_its_width() -> None:
    result = explain("sinusoidal", model="tiny")
    assert result.numbers["model"]["squared_norms"] == pytest.approx([32.0] * len(result.tokens))


def test_a_shift_of_the_text_moves_the_model_with_sines_and_not_with_rope() -> None:
    model = explain("sinusoidal", model="tiny").numbers["model"]
    assert model["rope_moved_by_shift"] < 1e-4 < 0.1 < model["sines_moved_by_shift"]
