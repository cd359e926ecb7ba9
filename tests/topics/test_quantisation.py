import pytest

from puna.topics.explain import explain


@pytest.fixture(scope="module")
def parts():
    return explain("quantisation", model="tiny").numbers


def test_the_laws_hold_on_gaussian_weights(parts):
    shown = parts["gaussian"]
    errors = {name: row[1] for name, row in zip(shown["weights"].rows, shown["weights"].values, strict=True)}
    assert errors["int8"] == pytest.approx(0.79, abs=0.02)
    assert errors["nf4"] == pytest.approx(9.20, abs=0.1)
    assert shown["int8_worst_steps"] <= 0.5001
    assert shown["nf4_worst_of_maximum"] <= shown["nf4_widest_half_gap"] == pytest.approx(0.1519, abs=1e-4)
    assert shown["int8_product_difference"] <= 1e-6
    assert shown["int8_product_percent"] == pytest.approx(1.10, abs=0.03)
    assert 11 < shown["int8_outlier_percent"] < 15


def test_8b_in_bfloat16_int8_and_nf4_has_the_ledgers_bytes(parts):
    grid = parts["llama_3_8b"]["stored"]
    gigabytes = {name: row[0] / 1e9 for name, row in zip(grid.rows, grid.values, strict=True)}
    assert round(gigabytes["bfloat16"], 2) == 16.06
    assert round(gigabytes["int8"], 3) == 9.087
    assert round(gigabytes["nf4"], 3) == 5.702


def test_eight_bits_change_a_real_models_predictions_less_than_four(parts):
    shown = parts["model"]
    nats = {name: row[0] for name, row in zip(shown["whole_model"].rows, shown["whole_model"].values, strict=True)}
    assert 0 < nats["int8"] < nats["nf4"]
