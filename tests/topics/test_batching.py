import pytest

from puna.topics.explain import explain


@pytest.fixture(scope="module")
def numbers():
    return explain("batching", model="tiny").numbers


def test_a_batch_gives_the_results_of_its_rows(numbers):
    assert numbers["model"]["rows_difference"] <= 1e-6
    assert numbers["linear"]["rows_difference"] <= 1e-12


def test_batches_of_1_to_32_are_timed_and_a_large_one_is_faster(numbers):
    rates = numbers["model"]["rates"]
    assert rates.rows == [f"batch {batch}" for batch in (1, 2, 4, 8, 16, 32)]
    assert all(rate > 0 for rate, _ in rates.values)
    assert rates.values[-1][1] > 2  # some 28 times on a quiet machine


def test_a_card_is_compute_bound_from_so_many_rows(numbers):
    cards = dict(zip(numbers["cards"]["compute_bound"].rows, numbers["cards"]["compute_bound"].values, strict=True))
    assert cards["H100"] == [989, 3350, 295]


def test_of_a_large_preset_one_linear_is_timed():
    numbers = explain("batching", model="llama-3-8b").numbers
    assert set(numbers["model"]) == {"step_flops"}
    assert len(numbers["linear"]["rates"].rows) == 6
