"""Whitened low rank one layer at a time: memory holds the stream, one layer's sums and one matrix, whatever the depth.

    x_1 = embed(ids);   for each layer:  G = sum x x^T of what its Linears read,  x_{n+1} = block_n(x_n)

The stream is the dense model's: each layer is run as it was and its factors are set aside, so that the result is that of
the whole model at once. An input that only a wide Linear reads (down_proj: 14336 of them in Llama 3 8B, a Gram of 1.6 GB)
has no Gram: that of the outputs is all that the decomposition needs, from float32 outputs squared in float64.
Peak beside the stream (4 bytes x tokens x dim), for Llama 3 8B's shape, scaled from a quarter of its widths: 1.3 GB while a
layer is run (4 Grams, a weight in float32, activations), 1.9 GB while it is cut (2 Grams, a weight in float64, 5 squares,
the factors so far). Source: docs/compression.md 1.2.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.arch.modules import LINEARS, linear_path, shares_input
from puna.compression.low_rank import Spectrum, check_finite, decompose_outputs, decompose_whitened
from puna.compression.statistics import InputSum, refuse_no_tokens, watched
from puna.errors import BadData
from puna.model.linears.kind import AnyLinear, own_weight
from puna.model.llama import Llama
from puna.model.surgery import get_linear
from puna.model.visibility import ways_to_attend

__all__ = ["Factors", "Stream", "embed", "factor_layer"]

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Stream:
    """What the next layer reads, of every calibration window: x_ND, their tokens one after the other; lengths of each."""

    x_ND: Tensor
    lengths: tuple[int, ...]

    def windows(self) -> tuple[Tensor, ...]:
        """x_TD of each window, views."""
        return self.x_ND.split(self.lengths)


@torch.no_grad()
def embed(model: Llama, windows: Sequence[Tensor]) -> Stream:
    """The stream into the first layer. Args: windows: ids_1T. Errors: BadData: no window at all."""
    refuse_no_tokens(len(windows))
    parts = [model.embed_tokens(ids_1T[0]).to(model.dtype) for ids_1T in windows]
    return Stream(torch.cat(parts), tuple(len(part) for part in parts))


@torch.no_grad()
def factor_layer(
    model: Llama, layer: int, stream: Stream, ranks: Mapping[str, int], passed: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, Factors]]:
    """(path, (U, V)) of each of a layer's Linears that has a rank, in the model's table's type.

    Before the first of them comes, the stream has become, in place, what the next layer reads; the model stays as it was.
    Args:   ranks: by path. passed: is called after each window and each matrix, and may raise to leave off.
    Errors: BadData: a weight or an input that is NaN or infinite, named.
    """
    paths = [linear_path(layer, name) for name in LINEARS]
    check_finite((path, get_linear(model, path)) for path in paths)
    sums = {path: _new_sum(model, path) for path in paths if _first(path) == path}
    see_inputs = {path: total.add for path, total in sums.items() if isinstance(total, InputSum)}
    see_outputs = {path: total.add for path, total in sums.items() if isinstance(total, _OutputSum)}
    with watched(model, see_inputs, see_outputs=see_outputs):
        _advance(model, layer, stream, passed)
    for path, total in sums.items():
        total.check(path)
    dtype = model.embed_tokens.weight.dtype
    for path in reversed(paths):  # down_proj first: its sum holds the most
        total = sums[_first(path)]
        if path in ranks:
            yield path, _stored(_decompose(get_linear(model, path), total, ranks[path]), dtype)
            passed()
        if path in sums:
            del sums[path], total


class _OutputSum:
    """What one Linear's outputs have summed up to: their Gram, in float64."""

    def __init__(self, model: Llama, path: str) -> None:
        width, device = get_linear(model, path).out_features, model.embed_tokens.weight.device
        self.gram_oo = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, y: Tensor) -> None:
        """Add what the Linear gives, (..., d_out)."""
        y_No = y.flatten(0, -2).double()
        self.gram_oo.addmm_(y_No.T, y_No)

    def check(self, path: str) -> None:
        """Errors: BadData naming the Linear whose outputs were not finite."""
        if not self.gram_oo.isfinite().all():
            raise BadData(f"calibration: expected finite outputs of {path}, got NaN or infinity", "check the weights")


def _new_sum(model: Llama, path: str) -> InputSum | _OutputSum:
    """What is collected where a Linear, the first of those of its input, stands."""
    linear = get_linear(model, path)
    is_alone = len(shares_input(path.rpartition(".")[2])) == 1
    is_wide = linear.out_features < linear.in_features
    return (_OutputSum if is_alone and is_wide else InputSum)(model, path)


def _advance(model: Llama, layer: int, stream: Stream, passed: Callable[[], None]) -> None:
    """Run a layer over every window, in place."""
    block, device = model.layers[layer], stream.x_ND.device
    positions_1T = torch.arange(max(stream.lengths), device=device)[None]
    for x_TD in stream.windows():
        tokens = len(x_TD)
        attend = ways_to_attend(model.config, tokens, None, None, device, x_TD.dtype)[layer]
        rotate = model.position.rotation(positions_1T[:, :tokens])
        x_TD.copy_(block(x_TD[None], rotate, attend, None)[0])
        passed()


def _decompose(linear: AnyLinear, total: InputSum | _OutputSum, rank: int) -> Spectrum:
    if isinstance(total, _OutputSum):
        return decompose_outputs(own_weight(linear), total.gram_oo, rank)
    return decompose_whitened(own_weight(linear), total.gram_ii, rank=rank)


def _stored(spectrum: Spectrum, dtype: torch.dtype) -> Factors:
    return spectrum.left_oK.to(dtype).contiguous(), spectrum.right_Ki.to(dtype).contiguous()


def _first(path: str) -> str:
    """The path of the first Linear that reads the same input."""
    parent, _, name = path.rpartition(".")
    return f"{parent}.{shares_input(name)[0]}"
