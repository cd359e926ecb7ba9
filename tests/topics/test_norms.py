"""Three norms: the ledger's rows 003-02, 003-03, 003-04, 003-07, 003-10 and 003-43."""

import pytest

from puna.topics.explain import explain


@pytest.fixture(scope="module")
def numbers():
    return explain("norms", model="tiny").numbers


def rows(grid):
    return dict(zip(grid.rows, grid.values, strict=True))


def test_mean_variance_and_output_of_layer_norm_are_its_formulas(numbers):
    vector = numbers["vector"]
    assert (vector["mean"], vector["variance"]) == (2.0, 1.5)
    expected = [each / 1.5**0.5 for each in (2, 0, -1, -1)]
    assert rows(vector["outputs"])["LayerNorm"] == pytest.approx(expected, abs=1e-4)
    assert max(vector["by_hand_difference"], vector["mean_free_difference"]) <= 1e-6


def test_rms_norm_keeps_the_ratios_and_batch_norm_evens_the_features(numbers):
    ratios, spreads = rows(numbers["vector"]["ratios"]), rows(numbers["vector"]["spreads"])
    assert ratios["RMSNorm"] == pytest.approx(ratios["x"])
    assert ratios["LayerNorm"] == pytest.approx(ratios["x - mean"])
    assert spreads["x"] == pytest.approx([4, 2**0.5, 1, 1])
    assert spreads["BatchNorm"] == pytest.approx([1, 1, 1, 1], abs=1e-4)


def test_eps_beside_the_root_is_another_norm_for_small_vectors(numbers):
    assert numbers["small"]["places_apart"] == pytest.approx(0.6824, abs=1e-4)
    assert numbers["small"]["places_apart_ordinary"] < 1e-5


def test_only_batch_norm_in_training_reads_the_future(numbers):
    moved = {name: most for name, (most,) in rows(numbers["future"]["earlier_moved"]).items()}
    assert moved.pop("BatchNorm") == pytest.approx(0.1283, abs=1e-4)
    assert moved == {"RMSNorm": 0, "LayerNorm": 0, "BatchNorm.eval()": 0}


def test_the_norms_of_a_pass_are_the_formula_and_leave_a_root_mean_square_near_1(numbers):
    assert numbers["model"]["output_difference"] <= 1e-6
    assert len(numbers["model"]["stream"].rows) == numbers["model"]["norms"] == 5
    for before, _, after in numbers["model"]["stream"].values:
        assert after == pytest.approx((before**2 / (before**2 + 1e-5)) ** 0.5, rel=1e-2)


def test_of_the_8b_norms_are_counted():
    model = explain("norms", model="llama-3-8b").numbers["model"]
    assert (model["norms"], model["norm_parameters"]) == (65, 266_240)


def test_what_each_norm_makes_of_a_vector_and_who_moves_whom_are_drawn(tmp_path):
    shown = explain("norms", model="llama-3-8b", out=tmp_path)
    assert sorted(shown.pictures) == sorted(str(path) for path in tmp_path.glob("*.svg"))
    assert "RMSNorm" in (tmp_path / "norms.svg").read_text("utf-8")
