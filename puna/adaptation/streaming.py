"""Layer streaming: an adapter is trained while the frozen weights of the last layers stay in host memory.

    forward  ... k, k + 1, ..., n - 1;   back  n - 1, ..., k + 1, k:   a layer's weights are copied just before it computes

Two layers' weights are on the device at most: the one that computes, and the next one, whose copy runs meanwhile (on CUDA
on a stream of its own). Both ends of the way keep two layers for the turn: a step copies 2 (n - k - 2) layers, 0 for two.
What autograd keeps of a weight is a view of the device's storage. That storage is emptied when the layer's turn is over
and filled again before the way back needs it, so that a kept view costs nothing; the trick is FSDP's, Zhao et al. 2023,
arXiv:2304.11277. Every product with a layer's weights on the way back leads to the gradient of the layer's input, so
nothing reads them after the layer below begins. docs/streaming.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from puna.arch.modules import EMBEDDING, LINEARS, linear_path
from puna.errors import UsageError
from puna.model.attention import Attend, KeyValueStore
from puna.model.block import Block
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.group import dense_products
from puna.model.linears.lora import LoraEmbedding, LoraLinear
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.positions import Rotate
from puna.model.surgery import get_linear

__all__ = ["LayerStream", "stream_layers"]

_HELD = 2  # the layer that computes and the next one


def stream_layers(
    model: Llama,
    count: int,
    device: torch.device | str,
    *,
    embedding: bool = False,
    pinned: bool | None = None,
) -> "LayerStream":
    """Move a model to the device, except the frozen Linears of its last `count` layers; their adapters and norms move.

    Call it after the adapter is attached, on a model in host memory: so a model larger than the device is never there.
    Host weights are read and never written, so they may be mapped from their files; merging and saving find them in place.

    Args:   embedding: leave the table in host memory too; ids go there, and only the rows that they name come back.
            pinned: copy the host weights into locked memory, where a copy to CUDA runs beside the products; None: on CUDA.
    Raises: UsageError: no such count, weights that train, streamed already, a tied table (the head needs it on the
            device), pinned without CUDA.
    """
    place = torch.device(device)
    pinned = place.type == "cuda" if pinned is None else pinned
    _check(model, count, place, embedding=embedding, pinned=pinned)
    first = model.config.n_layers - count
    layers = [_layer(model, index, place, pinned=pinned) for index in range(first, model.config.n_layers)]
    left = [weight for layer in layers for weight in layer]
    table = _table(model).weight if embedding else None
    _move_others(model, place, left, table)
    stream = LayerStream(layers, place)
    for index, block in enumerate(model.layers[first:]):
        assert isinstance(block, Block)
        model.layers[first + index] = _StreamedBlock(block, stream, index)
    if table is not None:
        host = _HostEmbedding(_in_host(table, pinned=pinned), place)
        if isinstance(model.embed_tokens, LoraEmbedding):
            model.embed_tokens.base = host
        else:
            model.embed_tokens = host
    return stream


class LayerStream:
    """Which streamed layers have their weights on the device. copied_bytes: what has gone there since the start."""

    def __init__(self, layers: list[list["_Weight"]], device: torch.device) -> None:
        self.copied_bytes = 0
        self._layers, self._device = layers, device
        self._held: list[int] = []  # the oldest first
        self._copied: dict[int, torch.cuda.Event] = {}
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._on_way_back: int | None = None

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """The frozen bytes of each streamed layer."""
        return tuple(sum(weight.host.nbytes for weight in layer) for layer in self._layers)

    @property
    def held_bytes(self) -> int:
        """The frozen bytes of streamed layers that the device holds now, read from the storages themselves."""
        return sum(weight.shell.untyped_storage().nbytes() for layer in self._layers for weight in layer)

    @contextmanager
    def placed(self, index: int) -> Iterator[None]:
        """Within the block of code, a layer's Linears have their weights on the device, and the next copy is under way."""
        is_formed_again = self._on_way_back == index  # by activation checkpointing: the next one is below
        self._on_way_back = index if is_formed_again else None
        self._fetch(index, index - 1 if is_formed_again else index + 1)
        for weight in self._layers[index]:
            weight.hang(weight.shell)
        try:
            yield
        finally:
            for weight in self._layers[index]:
                weight.hang(weight.host)

    def go_back(self, index: int, _: Tensor) -> None:
        """The gradient of a layer's output is here: the layer's own way back begins."""
        self._on_way_back = index
        self._fetch(index, index - 1)

    def _fetch(self, index: int, following: int) -> None:
        """Have one layer on the device, and another on its way."""
        wanted = [index, following] if 0 <= following < len(self._layers) else [index]
        surplus = len({*self._held, *wanted}) - _HELD
        for old in [held for held in self._held if held not in wanted][: max(0, surplus)]:
            self._drop(old)
        for each in wanted:
            if each not in self._held:
                self._copy(each)
        self._wait(index)

    def _copy(self, index: int) -> None:
        """Begin a layer's copy. Storages belong to the stream that computes, which the copy follows: their memory may have
        served a product before.
        """
        self._held.append(index)
        for weight in self._layers[index]:
            weight.shell.untyped_storage().resize_(weight.host.nbytes)
        if self._side is None:
            self._fill(index)
            return
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            self._fill(index)
            self._copied[index] = self._side.record_event()

    def _fill(self, index: int) -> None:
        for weight in self._layers[index]:
            weight.shell.data.copy_(weight.host, non_blocking=True)  # .data: autograd would call it changed in place
            self.copied_bytes += weight.host.nbytes

    def _wait(self, index: int) -> None:
        if index in self._copied:
            torch.cuda.current_stream(self._device).wait_event(self._copied.pop(index))

    def _drop(self, index: int) -> None:
        self._wait(index)  # memory that a copy still fills must not serve another product
        for weight in self._layers[index]:
            weight.shell.untyped_storage().resize_(0)
        self._held.remove(index)


@dataclass(frozen=True, slots=True)
class _Weight:
    """A frozen tensor of Linears: where it hangs, the host's, and the device's, whose storage is empty most of the time."""

    modules: list[nn.Module]  # more than one of a factor that Linears share
    name: str
    host: Tensor
    shell: Tensor

    def hang(self, tensor: Tensor) -> None:
        """Have its Linears use another one."""
        for module in self.modules:
            setattr(module, self.name, tensor)


class _StreamedBlock(Block):
    """A block whose frozen weights are on the device while it computes; its modules and their names are the old block's."""

    def __init__(self, block: Block, stream: LayerStream, index: int) -> None:
        nn.Module.__init__(self)
        for name, child in block.named_children():
            self.add_module(name, child)
        self.train(block.training)
        self._stream, self._index = stream, index

    def forward(self, x_BTD: Tensor, rotate: Rotate, attend: Attend, cache: KeyValueStore | None) -> Tensor:
        """Args and result: as Block.forward."""
        with self._stream.placed(self._index):
            y_BTD = super().forward(x_BTD, rotate, attend, cache)
        if y_BTD.requires_grad:
            y_BTD.register_hook(partial(self._stream.go_back, self._index))
        return y_BTD


class _HostEmbedding(nn.Embedding):
    """A frozen table in host memory: ids go to it, and the rows that they name go to the device."""

    def __init__(self, table_VD: Tensor, device: torch.device) -> None:
        super().__init__(table_VD.shape[0], table_VD.shape[1], _weight=table_VD, _freeze=True)
        self._device = device

    def forward(self, ids: Tensor) -> Tensor:
        """Args: ids (...), on any device. Returns: (..., d) on the model's."""
        return F.embedding(ids.to(self.weight.device), self.weight).to(self._device)


def _product(linear: nn.Linear | LowRankLinear, x: Tensor) -> Tensor:
    """What a Linear of dense matrices computes, keeping nothing but them: of a rounded copy no stream can empty the storage."""
    for weight in (linear.weight,) if isinstance(linear, nn.Linear) else (linear.V, linear.U):
        (x,) = dense_products(x, weight)
    return x


def _layer(model: Llama, index: int, device: torch.device, *, pinned: bool) -> list[_Weight]:
    """A layer's frozen tensors, now in host memory, with empty places for them on the device."""
    weights: dict[Tensor, _Weight] = {}
    for linear_name in LINEARS:
        linear = get_linear(model, linear_path(index, linear_name))
        base = linear.base if isinstance(linear, LoraLinear) else linear
        if isinstance(base, nn.Linear | LowRankLinear):
            object.__setattr__(base, "forward", partial(_product, base))
        for name, tensor in (*base.named_parameters(), *base.named_buffers()):
            if tensor in weights:
                weights[tensor].modules.append(base)
                continue
            host = _in_host(tensor, pinned=pinned)
            shell = torch.empty(host.shape, dtype=host.dtype, device=device)
            shell.untyped_storage().resize_(0)
            weights[tensor] = _Weight([base], name, host, _like(tensor, shell))
    return list(weights.values())


def _in_host(tensor: Tensor, *, pinned: bool) -> Tensor:
    """The tensor itself where it is in host memory already."""
    host = tensor.detach().cpu()
    if pinned:
        host = host.pin_memory()
    return tensor if host.data_ptr() == tensor.data_ptr() else _like(tensor, host)


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    return nn.Parameter(other, requires_grad=False) if isinstance(tensor, nn.Parameter) else other


def _move_others(model: Llama, device: torch.device, left: list[_Weight], table: Tensor | None) -> None:
    """Move all but the streamed weights, which are out of the model meanwhile."""
    for weight in left:
        weight.hang(_like(weight.host, torch.empty(0, dtype=weight.host.dtype)))
    if table is not None:
        _table(model).weight = nn.Parameter(torch.empty(0, dtype=table.dtype), requires_grad=False)
    try:
        model.to(device)
    finally:
        for weight in left:
            weight.hang(weight.host)
        if isinstance(table, nn.Parameter):
            _table(model).weight = table


def _table(model: Llama) -> nn.Embedding:
    return model.embed_tokens.base if isinstance(model.embed_tokens, LoraEmbedding) else model.embed_tokens


def _check(model: Llama, count: int, device: torch.device, *, embedding: bool, pinned: bool) -> None:
    layers = model.config.n_layers
    if not 0 <= count <= layers:
        raise UsageError(f"streamed layers: expected 0 to {layers}, got {count}", f"the model has {layers} layers")
    if isinstance(_table(model), _HostEmbedding) or any(isinstance(block, _StreamedBlock) for block in model.layers):
        raise UsageError("streamed layers: expected a model without, got one that streams", "load the model again")
    if pinned and device.type != "cuda":
        raise UsageError(
            f"pinned: expected a CUDA device, got {device}", "leave it out: host memory is the device here"
        )
    if embedding and model.config.tied_embeddings:
        raise UsageError(
            "embedding: expected a head of its own beside a table in host memory, got one tied to it",
            "stream layers alone: the head reads the whole table at every step",
        )
    if embedding and isinstance(model.embed_tokens, FactoredEmbedding):
        raise UsageError(
            "streamed_embedding: expected a dense table, got a factored one", "leave it on the device: it is small"
        )
    paths = [linear_path(layer, name) for layer in range(layers - count, layers) for name in LINEARS]
    for path in [*paths, EMBEDDING] if embedding else paths:
        module = model.get_submodule(path)
        frozen = module.base if isinstance(module, LoraLinear | LoraEmbedding) else module
        if any(weight.requires_grad for weight in frozen.parameters()):
            raise UsageError(f"{path}: expected frozen weights, got weights that train", "attach an adapter first")
