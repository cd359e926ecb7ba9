"""What a compressed folder holds in place of dense matrices, counted from its configuration alone: for the planner."""

import math
from collections import Counter

from puna.arch.modules import EMBEDDING, HEAD, LINEARS, linear_path, linear_shapes
from puna.planning.settings import Compressed
from puna.weights.checkpoint import CheckpointConfig
from puna.weights.names import CorrectedEntry, FusedEntry, LinearEntry, LowRankEntry, RoundedEntry, entry_of_each

__all__ = ["compressed_sizes"]

_BYTES = {"I8": 1, "U8": 1, "F32": 4}  # of what keeps its own type: codes and scales


def compressed_sizes(stored: CheckpointConfig) -> Compressed | None:
    """Numbers and bytes of what stands there; None of a model whose matrices are all dense."""
    if not stored.linears and stored.embedding_rank is None:
        return None
    config, numbers, rounded_bytes = stored.model, Counter[str](), 0
    for tensor in stored.expected():
        count = math.prod(tensor.shape)
        if tensor.is_converted:
            numbers[tensor.module.rpartition(".")[2]] += count
        else:
            rounded_bytes += count * max(_BYTES[dtype] for dtype in tensor.dtypes)
    products, entries, shapes = Counter[str](), entry_of_each(stored.linears), linear_shapes(config)
    again, widened = 0, 0
    for layer in range(config.n_layers):
        for name, shape in shapes.items():
            path = linear_path(layer, name)
            entry = entries.get(path)
            products[name] += _products(path, *shape, entry)
            again += _read_again(path, shape[1], entry)
            widened = max(widened, _widened(*shape, entry))
    table, is_factored = numbers[EMBEDDING], stored.embedding_rank is not None
    shared = table - (config.dim if is_factored else 0)  # a tied head adds no mean
    return Compressed(
        linears=sum(numbers[name] for name in LINEARS),
        rounded_bytes=rounded_bytes,
        parameters=products.total() - again,
        widened=widened,
        table=table,
        head=numbers[HEAD],
        is_table_factored=is_factored,
        products=dict(products),
        head_products=shared if config.tied_embeddings else numbers[HEAD],
    )


def _products(path: str, d_out: int, d_in: int, entry: LinearEntry | None) -> int:
    """Numbers that a Linear multiplies a token with; a product that it shares counts at the first that reads it."""
    match entry:
        case LowRankEntry(rank=rank):
            return rank * (d_out + d_in)
        case FusedEntry(paths=paths, rank=rank):
            is_first = path == paths[0]
            return rank * (d_out + (d_in if is_first else 0)) + _read_again(path, d_in, entry)
        case CorrectedEntry(rank=rank):
            return d_out * d_in + rank * (d_out + d_in)
        case _:
            return d_out * d_in


def _read_again(path: str, d_in: int, entry: LinearEntry | None) -> int:
    """Numbers of a shared factor that stands at another Linear, and that this one multiplies anew: of few bits it does."""
    if isinstance(entry, FusedEntry) and entry.factors is not None and path != entry.paths[0]:
        return entry.rank * d_in
    return 0


def _widened(d_out: int, d_in: int, entry: LinearEntry | None) -> int:
    """Numbers of few bits that are made dense at once."""
    match entry:
        case LowRankEntry(rank=rank, factors=str()) | FusedEntry(rank=rank, factors=str()):
            return rank * max(d_out, d_in)
        case RoundedEntry() | CorrectedEntry():
            return d_out * d_in
        case _:
            return 0
