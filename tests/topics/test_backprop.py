import pytest

from puna.topics.explain import explain


@pytest.fixture(scope="module")
def numbers():
    return explain("backprop", model="tiny").numbers


@pytest.mark.parametrize("part", ["model", "linear"])
def test_three_ways_lead_to_one_gradient(numbers, part):
    shown = numbers[part]
    for autograd, by_hand, central, *less in shown["gradient"].values:
        assert autograd != 0
        assert less == [by_hand - autograd, central - autograd]
    assert shown["by_hand_difference"] <= 1e-12
    assert shown["central_difference"] <= 1e-6


def test_the_gradient_is_as_large_as_its_weight_and_dy_dw_is_not(numbers):
    linear = numbers["linear"]
    assert (linear["weight_gradient_shape"], linear["jacobian_shape"]) == ([3, 4], [3, 3, 3, 4])
    assert len(linear["gradient"].rows) == 12
    assert linear["input_gradient_difference"] <= 1e-12


def test_a_models_weights_are_left_as_they_are():
    first, second = (explain("backprop", model="tiny").numbers["model"]["gradient"].values for _ in range(2))
    assert first == second


def test_of_a_large_preset_the_numbers_are_counted():
    model = explain("backprop", model="llama-3-8b", text="one two three").numbers["model"]
    assert model == {"gradient_numbers": 4096**2, "jacobian_numbers": 3 * 4096**3}
