"""Weights on disk: what a checkpoint says, checked before anything is allocated, and models read from and written to it."""
