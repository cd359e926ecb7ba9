import pytest

from puna.errors import UsageError
from puna.topics.explain import explain


def test_the_error_is_the_dropped_singular_values_and_whitening_never_loses_more_of_the_outputs():
    shown = explain("svd", model="tiny", rank=8).numbers["model"]
    for law in ("squares_difference", "outputs_difference", "full_rank_difference"):
        assert shown[law] <= 1e-10
    for _, _, plain, whitened in shown["by_rank"].values:
        assert whitened <= plain + 1e-12


def test_a_rank_has_its_count_and_the_break_even_ranks_are_the_ledgers():
    shown = explain("svd", model="llama-3-8b", rank=64).numbers["llama_3_8b"]["matrices"]
    rows = dict(zip(shown.rows, shown.values, strict=True))
    assert rows["q_proj"] == ("4096 × 4096", 16_777_216, 64 * 8192, 2048)
    assert (rows["k_proj"][3], rows["up_proj"][3]) == (819.2, 3185.8)


def test_a_rank_that_the_matrix_does_not_have_is_refused():
    with pytest.raises(UsageError, match="at most 64"):
        explain("svd", model="tiny", rank=65)
