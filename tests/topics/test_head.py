import pytest

from puna.topics.explain import explain


def test_the_ten_likeliest_tokens_come_with_logits_and_probabilities():
    result = explain("head", model="tiny", text="The cat sleeps")
    numbers, likeliest = result.numbers["model"], result.numbers["model"]["likeliest"]
    logits, probabilities = zip(*likeliest.values, strict=True)
    assert len(likeliest.rows) == 10
    assert list(probabilities) == sorted(probabilities, reverse=True)
    assert list(logits) == sorted(logits, reverse=True)
    assert numbers["probability_sum"] == pytest.approx(1, abs=1e-6)
    assert numbers["softmax_difference"] <= 1e-6
    assert numbers["shift_difference"] <= 1e-12


def test_there_is_no_bias():
    tied, untied = (explain("head", model=name).numbers["model"] for name in ("tiny", "llama-3-8b"))
    assert (tied["weight_parameters"], tied["own_parameters"], tied["bias_parameters"]) == (32_768, 0, 0)
    assert (untied["own_parameters"], untied["bias_parameters"]) == (525_336_576, 0)
    assert untied["bias_would_be_parameters"] == 128_256
