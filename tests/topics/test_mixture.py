import pytest

from puna.topics.explain import explain


@pytest.fixture(scope="module")
def parts():
    return explain("mixture", model="tiny").numbers


def test_epochs_are_those_of_the_ledger(parts):
    grid = parts["four_sources"]["epochs"]
    assert grid.columns[1] == "a = 0.5"
    assert [round(row[1], 2) for row in grid.values] == [0.77, 1.41, 2.82, 6.30]
    assert [round(row[4], 2) for row in grid.values] == [0.57, 1.90, 4.0, 4.0]


def test_weights_sum_to_one_and_no_source_is_a_window_off_its_share(parts):
    shown = parts["four_sources"]
    assert [sum(column) for column in zip(*shown["weights"].values, strict=True)] == pytest.approx([1] * 5)
    assert shown["furthest_from_share_windows"] < 1
    assert shown["weights_difference"] <= 1e-12


def test_llama_1_weighs_books_above_arxiv_which_has_more_tokens(parts):
    rows = dict(zip(parts["llama_1"]["table"].rows, parts["llama_1"]["table"].values, strict=True))
    books, arxiv = rows["Books"], rows["ArXiv"]
    assert (round(books[0], 1), round(arxiv[0], 1)) == (28.3, 33.0)
    assert books[1] / arxiv[1] == pytest.approx(1.8)
    assert books[3] < arxiv[3]
