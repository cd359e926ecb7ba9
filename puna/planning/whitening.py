"""Seconds of compressing a layer by whitened low rank on a processor, from its rate of large float32 products.

    products in float32 / rate + products in float64 / (rate / 2) + eigenproblems of K, each as slow as 6 products of K x K
    in float64 on one thread

Counted are the layer's own products, the Grams, and what the decomposition of each matrix multiplies; attention and all
that is not a product are left out. The eigenproblems' factor: docs/compress.md.
"""

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_shapes, shares_input

__all__ = ["layer_seconds"]

_FLOAT64 = 2.0  # as slow as float32
_EIGENPROBLEM = 6.2  # in products of its size


def layer_seconds(config: ModelConfig, tokens: int, flops_per_second: float, threads: int) -> float:
    """Predicted seconds of one layer. Args: flops_per_second: of large float32 products on all of the threads."""
    shapes, float32, float64, alone = linear_shapes(config), 0.0, 0.0, 0.0
    for d_out, d_in in shapes.values():
        small = min(d_out, d_in)
        float64 += 4 * d_out * d_in * small + 4 * small**3
        alone += _EIGENPROBLEM * 2 * small**3
    for name, (d_out, d_in) in shapes.items():
        if name != (members := shares_input(name))[0]:
            continue
        if d_out < d_in and len(members) == 1:
            float64 += 2 * tokens * d_out * d_out
        else:
            float32 += 2 * tokens * d_in * d_in
    float32 += 2 * tokens * sum(d_out * d_in for d_out, d_in in shapes.values())
    return (float32 + _FLOAT64 * (float64 + threads * alone)) / flops_per_second
