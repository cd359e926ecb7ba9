"""Mixed precision as `puna explain precision` shows it."""

import pytest

from puna.topics.explain import ExplainResult, explain


@pytest.fixture(scope="module")
def result() -> ExplainResult:
    return explain("precision", model="tiny")


def test_a_small_update_is_lost_in_16_bits_and_kept_in_32(result) -> None:
    example = result.numbers["example"]
    assert (example["sum_float16"], example["sum_bfloat16"], example["sum_float32"]) == (1, 1, 1 + 2**-11)


def test_scaling_saves_a_gradient_too_small_for_float16_and_halves_on_overflow(result) -> None:
    example = result.numbers["example"]
    assert (example["gradient_float16"], example["gradient_scaled"]) == (0, 2**-26)
    assert (example["first_scale"], example["scale_after_overflow"]) == (65_536, 32_768)


def test_a_real_step_multiplies_in_16_bits_and_keeps_the_rest_in_32(result) -> None:
    types = [(name, size) for name, size, _ in result.numbers["model"]["types"].values]
    wide, narrow = ("float32", 4), ("bfloat16", 2)
    assert types == [wide] * 3 + [narrow] * 2 + [wide] * 4 + [("float64", 8)]


def test_the_text_costs_as_many_nats_in_every_type_but_most_updates_need_float32(result) -> None:
    model = result.numbers["model"]
    assert model["float16_nats"] == pytest.approx(model["float32_nats"], abs=0.01)
    assert model["bfloat16_nats"] == pytest.approx(model["float32_nats"], abs=0.01)
    assert model["lost_updates_share"] > 0.5
    assert model["small_scaled_gradients_share"] < model["small_gradients_share"]


def test_adam_holds_16_bytes_a_parameter_with_a_float32_copy_or_without() -> None:
    states = explain("precision", model="llama-3-8b").numbers["model"]["state_bytes"].values
    assert [row[3] for row in states] == [16, 16, 8]
    assert states[1][4] == 128_484_179_968
