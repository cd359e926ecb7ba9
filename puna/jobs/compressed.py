"""What a compressed folder holds in place of dense matrices, counted from its configuration alone: for the planner."""

import math
from collections import Counter

from puna.arch.modules import EMBEDDING, HEAD, LINEARS, linear_path, linear_shapes
from puna.planning.settings import Compressed
from puna.weights.checkpoint import CheckpointConfig
from puna.weights.names import CorrectedEntry, FusedEntry, LinearEntry, LowRankEntry, entry_of_each

__all__ = ["compressed_sizes"]

_BYTES = {"I8": 1, "U8": 1, "F32": 4}  # of what keeps its own type: codes and scales


def compressed_sizes(stored: CheckpointConfig) -> Compressed | None:
    """Numbers and bytes of what stands there; None of a model whose matrices are all dense."""
    if not stored.linears and stored.embedding_rank is None:
        return None
    config, entries, products = stored.model, entry_of_each(stored.linears), Counter[str]()
    for layer in range(config.n_layers):
        for name, shape in linear_shapes(config).items():
            path = linear_path(layer, name)
            products[name] += _products(path, *shape, entries.get(path))
    numbers, rounded_bytes = Counter[str](), 0
    for tensor in stored.expected():
        count = math.prod(tensor.shape)
        if tensor.is_converted:
            numbers[tensor.module.rpartition(".")[2]] += count
        else:
            rounded_bytes += count * max(_BYTES[dtype] for dtype in tensor.dtypes)
    table = numbers[EMBEDDING]
    shared = table - (0 if stored.embedding_rank is None else config.dim)  # a tied head adds no mean
    return Compressed(
        linears=sum(numbers[name] for name in LINEARS),
        rounded_bytes=rounded_bytes,
        table=table,
        head=numbers[HEAD],
        products=dict(products),
        head_products=shared if config.tied_embeddings else numbers[HEAD],
    )


def _products(path: str, d_out: int, d_in: int, entry: LinearEntry | None) -> int:
    """Numbers that a Linear multiplies a token with; what it shares counts at the first that reads it."""
    match entry:
        case LowRankEntry(rank=rank):
            return rank * (d_out + d_in)
        case FusedEntry(paths=paths, rank=rank, factors=rounding):  # V of few bits is read by each
            return rank * (d_out + (d_in if path == paths[0] or rounding is not None else 0))
        case CorrectedEntry(rank=rank):
            return d_out * d_in + rank * (d_out + d_in)
        case _:
            return d_out * d_in
