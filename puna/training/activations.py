"""Activation checkpointing: a block keeps its input alone, and the way back forms everything else in it again.

Memory of activations falls from all of every block to one input a block and all of one block; a step takes about a third
more products. Gradients are the same to the bit. Source: Chen et al. 2016, arXiv:1604.06174.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint

from puna.model.llama import Llama

__all__ = ["checkpointed_blocks"]


@contextmanager
def checkpointed_blocks(model: Llama, *, is_on: bool = True) -> Iterator[None]:
    """Within the block of code, the model's blocks are checkpointed wherever gradients are formed."""
    blocks = list(model.layers) if is_on else []
    for block in blocks:
        forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        object.__setattr__(block, "forward", forward)
    try:
        yield
    finally:
        for block in blocks:
            object.__delattr__(block, "forward")
