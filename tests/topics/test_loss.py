import math

import pytest

from puna.topics.explain import explain


@pytest.fixture(scope="module")
def numbers():
    return explain("loss", model="tiny", text="The cat sleeps on the sofa.").numbers


def test_equal_logits_cost_ln_v(numbers):
    rows = dict(zip(numbers["equal"]["equal_logits"].rows, numbers["equal"]["equal_logits"].values, strict=True))
    assert rows["V = 128,256"][0] == pytest.approx(11.76178, abs=1e-5)
    assert rows["V = 32,000"][0] == pytest.approx(10.37349, abs=1e-5)
    assert rows["V = 512"][0] == pytest.approx(math.log(512), abs=1e-12)
    assert numbers["equal"]["equal_logits_difference"] <= 1e-6


def test_the_loss_is_the_mean_of_its_tokens_and_a_split_changes_nothing(numbers):
    model = numbers["model"]
    nats = [nats for nats, _ in model["by_token"].values]
    assert len(nats) == model["targets_tokens"] == sum(model["split_tokens"])
    assert model["sum_nats"] == pytest.approx(sum(nats))
    assert model["mean_nats"] == pytest.approx(sum(nats) / len(nats))
    assert model["perplexity"] == pytest.approx(math.exp(model["mean_nats"]))
    assert model["split_difference"] <= 1e-6
    assert abs(model["mean_of_means_nats"] - model["mean_nats"]) > 1e-4


def test_the_gradient_of_the_logits_is_the_probability_less_the_truth(numbers):
    assert numbers["equal"]["gradient"].values == [[-0.375, 0.125, 0.125, 0.125], [0.125, 0.125, -0.375, 0.125]]
    assert numbers["equal"]["row_sum_difference"] == 0


def test_of_a_large_preset_only_equal_logits_are_shown():
    assert list(explain("loss", model="llama-3-8b").numbers) == ["equal"]
