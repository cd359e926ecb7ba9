"""Baselines that know how often, and nothing of order: p(x) = (count of x + 1) / (all counts + alphabet).

A language model is worth its context only below these. Add-one smoothing (Laplace) leaves no symbol impossible.
"""

import math

import numpy as np
from numpy.typing import NDArray

from puna.errors import BadData

__all__ = ["byte_unigram_bits_per_byte", "token_unigram_bits_per_byte"]


def token_unigram_bits_per_byte(
    train_counts_V: NDArray[np.int64], held_out_ids: NDArray[np.int64], held_out_bytes: int
) -> float:
    """Bits per byte of held-out ids under the token frequencies of the training split.

    Args: train_counts_V: how often each id occurs in training. held_out_bytes: UTF-8 bytes of the held-out text.
    """
    return _bits(train_counts_V, held_out_ids) / _at_least_one(held_out_bytes)


def byte_unigram_bits_per_byte(train_counts_256: NDArray[np.int64], held_out: bytes) -> float:
    """Bits per byte of held-out text under the byte frequencies of the training split."""
    return _bits(train_counts_256, np.frombuffer(held_out, dtype=np.uint8)) / _at_least_one(len(held_out))


def _bits(train_counts_V: NDArray[np.int64], held_out: NDArray[np.integer]) -> float:
    """Summed bits of the held-out symbols."""
    alphabet = len(train_counts_V)
    log2_V = np.log2(train_counts_V + 1) - math.log2(int(train_counts_V.sum()) + alphabet)
    return -float(np.bincount(held_out, minlength=alphabet) @ log2_V)


def _at_least_one(held_out_bytes: int) -> int:
    if held_out_bytes < 1:
        raise BadData("held-out text: expected at least one byte, got none", "hold out more documents")
    return held_out_bytes
