"""Fewer numbers for the same model: statistics of its inputs, low-rank factors under a budget, rounded weights."""
