"""The key-value cache as `puna explain cache` shows it."""

from puna.topics.explain import explain


def test_the_notes_layer_keeps_512_bytes_a_token_in_place_of_2048() -> None:
    example = explain("cache", model="tiny").numbers["example"]
    assert example["cache_bytes_per_token"] == 512
    assert example["separate_cache_bytes_per_token"] == 2048
    assert example["times_smaller"] == 4
    assert example["text_cache_bytes"] == 51_200


def test_token_by_token_equals_the_whole_and_takes_the_planned_bytes() -> None:
    model = explain("cache", model="tiny").numbers["model"]
    assert model["allocated_bytes"] == model["planned_bytes"] == 2 * 2 * 2 * 16 * 8 * 4
    assert model["cached_difference"] <= 1e-6


def test_the_cache_of_8b_grows_to_16_gib_and_a_windows_stands_still() -> None:
    model = explain("cache", model="llama-3-8b").numbers["model"]
    assert (model["cache_bytes_per_token"], model["separate_cache_bytes_per_token"]) == (131_072, 524_288)
    *_, at_8k, at_128k = model["cache_bytes"].values
    assert (at_8k[0], at_128k[0], at_128k[1]) == (2**30, 16 * 2**30, 64 * 2**30)
    assert at_8k[2] == at_128k[2] == 1028 * 131_072
