import numpy as np

from puna.tokens.packing import document_ids


def test_each_token_knows_its_document():
    ends = np.array([3, 4, 9])
    assert document_ids(ends, 0, 9).tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert document_ids(ends, 0, 9).dtype == np.int32


def test_documents_are_counted_from_the_window_start():
    ends = np.array([3, 4, 9])
    assert document_ids(ends, 2, 3).tolist() == [0, 1, 2]
    assert document_ids(ends, 5, 2).tolist() == [0, 0]
    assert document_ids(ends, 5, 0).tolist() == []


def test_every_window_agrees_with_a_walk_over_the_stream():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 50)
    owner = np.repeat(np.arange(50), lengths)
    for start in range(0, len(owner) - 16, 7):
        window = owner[start : start + 16]
        assert (document_ids(np.cumsum(lengths), start, 16) == window - window[0]).all()
