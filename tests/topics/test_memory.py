"""The memory of tuning with LoRA as `puna explain memory` shows it."""

import pytest

from puna.topics.explain import explain


@pytest.fixture(scope="module")
def example():
    return explain("memory", model="tiny").numbers["example"]


def test_the_peaks_of_8b_are_the_known_ones(example) -> None:
    *terms, total = example["peak_bytes"].values
    runtime = terms[-1]
    peaks = [(each - slack) / 2**30 for each, slack in zip(total, runtime, strict=True)]
    assert peaks == pytest.approx([17.31, 10.81, 7.66], abs=0.005)
    assert [sum(column) for column in zip(*terms, strict=True)] == list(total)
    assert list(terms[0]) == [16_060_522_496, 9_086_705_664, 5_702_296_448]
    unchecked = [(each - slack) / 2**30 for each, slack in zip(example["unchecked_bytes"], runtime, strict=True)]
    assert unchecked == pytest.approx([27.08, 20.58, 17.43], abs=0.005)


def test_the_adapter_of_rank_16_has_41_943_040_numbers(example) -> None:
    assert example["lora_parameters"] == 41_943_040


def test_16_bits_fit_the_notes_cards_only_with_layers_in_the_hosts_memory(example) -> None:
    assert [list(row) for row in example["streamed_layers"].values] == [[12, 0, 0], [7, 0, 0], [3, 0, 0]]


def test_the_models_own_plan_follows_the_rank() -> None:
    few, many = (explain("memory", model="llama-3-8b", rank=rank).numbers["model"] for rank in (8, 16))
    assert (few["row_tokens"], 2 * few["lora_parameters"]) == (2048, many["lora_parameters"])
