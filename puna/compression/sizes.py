"""What a model stores, in numbers and in bytes, of whatever kind its Linears are."""

from torch import Tensor

from puna.model.llama import Llama
from puna.model.surgery import named_linears

__all__ = ["linear_bytes", "stored_bytes", "stored_parameters"]


def stored_parameters(model: Llama) -> int:
    """Numbers in a model's file: parameters, and the codes and scales of rounded Linears."""
    return sum(tensor.numel() for tensor in _stored(model))


def stored_bytes(model: Llama) -> int:
    """Bytes of the same."""
    return sum(tensor.nbytes for tensor in _stored(model))


def linear_bytes(model: Llama) -> int:
    """Bytes that the block Linears store, of whatever kind: weights, factors and scales; a shared factor once."""
    linears = [linear for _, linear in named_linears(model)]
    tensors = {id(tensor): tensor for linear in linears for tensor in (*linear.parameters(), *linear.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def _stored(model: Llama) -> list[Tensor]:
    """The rotation frequencies are no part of a model's file."""
    codes = [tensor for name, tensor in model.named_buffers() if name != "position.frequencies_P"]
    return [*model.parameters(), *codes]
