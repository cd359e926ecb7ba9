"""Activations and the gate: the ledger's rows 002-06, 003-13, 003-16, 003-18, 003-20, 003-21, 003-43 and 004-05."""

from dataclasses import replace

import pytest

from puna.model.init import initialise
from puna.model.llama import Llama
from puna.topics.explain import explain, find_topic
from puna.topics.subject import find_subject
from puna.topics.words import topic_words


@pytest.fixture(scope="module")
def numbers():
    return explain("activations", model="tiny").numbers


def at(grid, row, column):
    return grid.values[grid.rows.index(row)][grid.columns.index(column)]


def test_swish_is_least_where_the_reference_says(numbers):
    assert numbers["curves"]["swish_minimum"] == pytest.approx(-0.2784645, abs=1e-6)
    assert numbers["curves"]["swish_minimum_at"] == pytest.approx(-1.2784645, abs=1e-5)
    assert at(numbers["curves"]["slopes"], "x = -1.2785", "Swish = SiLU") == pytest.approx(0, abs=1e-4)
    assert numbers["curves"]["functions_difference"] <= 1e-6


def test_swish_is_x_times_its_sigmoid_and_smooth_where_relu_breaks(numbers):
    values, slopes = numbers["curves"]["values"], numbers["curves"]["slopes"]
    assert at(values, "x = 2", "Swish = SiLU") == pytest.approx(2 * at(values, "x = 2", "sigma"))
    assert [at(slopes, f"x = {x}", "ReLU") for x in ("-0.1", "0.1")] == [0, 1]
    assert [at(slopes, f"x = {x}", "Swish = SiLU") for x in ("-0.1", "0", "0.1")] == pytest.approx(
        [0.45, 0.5, 0.55], abs=1e-3
    )


def test_gate_and_up_are_two_projections_and_the_network_by_hand_is_the_engines(numbers):
    model = numbers["model"]
    assert model["output_difference"] <= 1e-6
    assert model["steps"].rows == ["x", "W_gate x", "act(W_gate x)", "W_up x", "act(W_gate x) * W_up x", "W_down (...)"]
    _, _, opened, up, product, _ = model["steps"].values
    assert product == pytest.approx([a * b for a, b in zip(opened, up, strict=True)])


def test_the_rule_gives_the_widths_of_released_models(numbers):
    widths = numbers["widths"]
    found = {name: at(widths["rule"], name, "f") for name in widths["rule"].rows}
    assert found.items() >= {"llama-2-7b": 11_008, "llama-2-70b": 28_672, "llama-3-8b": 14_336}.items()
    assert at(widths["rule"], "llama-3-8b", "f / d") == 3.5
    assert at(widths["rule"], "llama-2-7b", "f / d") == 2.6875
    assert (widths["rule_difference"], widths["matched_width"]) == (0, 21_504)


def test_a_network_without_a_gate_is_shown_as_well():
    subject = find_subject("tiny", None, None, "en")
    config = replace(subject.config, ffn="relu")
    plain = replace(subject, config=config, llama=initialise(Llama(config), seed=0))
    model = find_topic("activations").show(plain, topic_words("activations", "en")).parts[0].numbers
    assert model["steps"].rows == ["x", "W_up x", "act(W_up x)", "W_down (...)"]
    assert model["output_difference"] <= 1e-6


def test_both_gates_are_drawn_with_their_slopes(tmp_path):
    explain("activations", model="llama-3-8b", lang="zh", out=tmp_path)
    for name in ("activations", "activations-slopes"):
        text = (tmp_path / f"{name}.svg").read_text("utf-8")
        assert "sigma" in text
        assert "Swish = SiLU" in text
