"""The baselines against hand computation."""

import math

import numpy as np
import pytest

from puna.errors import BadData
from puna.evaluation.unigram import byte_unigram_bits_per_byte, token_unigram_bits_per_byte


def test_token_unigram_by_hand() -> None:
    """Counts 3, 1, 0 over an alphabet of 3: p = 4/7, 2/7, 1/7."""
    bits = -(math.log2(4 / 7) * 2 + math.log2(1 / 7))
    assert token_unigram_bits_per_byte(np.array([3, 1, 0]), np.array([0, 2, 0]), 10) == pytest.approx(bits / 10)


def test_byte_unigram_by_hand() -> None:
    """Of 4 training bytes 3 are 'a': p(a) = 4/260, p(b) = 2/260, p(c) = 1/260."""
    counts = np.bincount(np.frombuffer(b"aaab", dtype=np.uint8), minlength=256)
    bits = -(math.log2(4 / 260) + math.log2(2 / 260) + math.log2(1 / 260)) / 3
    assert byte_unigram_bits_per_byte(counts, b"abc") == pytest.approx(bits)


def test_without_training_text_every_byte_costs_eight_bits() -> None:
    assert byte_unigram_bits_per_byte(np.zeros(256, dtype=np.int64), "你好".encode()) == pytest.approx(8)


def test_with_much_text_it_nears_the_entropy() -> None:
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0.25, 0.125, 0.125])
    train, held_out = np.bincount(rng.choice(4, 100_000, p=p), minlength=4), rng.choice(4, 100_000, p=p)
    assert token_unigram_bits_per_byte(train, held_out, len(held_out)) == pytest.approx(1.75, abs=0.01)


def test_nothing_held_out_is_refused() -> None:
    with pytest.raises(BadData, match="held-out"):
        byte_unigram_bits_per_byte(np.ones(256, dtype=np.int64), b"")
