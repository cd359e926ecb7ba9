"""The tensors of a checkpoint of any format, as our model lays them out.

    Meta and GGUF keep rows of q and k as pairs:  w_hf[j] = w[2j],  w_hf[j + E/2] = w[2j + 1]  for each head

Shards are joined and blocks become float32; what needs no change is mapped and not copied.
Format: docs/formats.md 1.2, 3 and 6.
"""

import torch
from torch import Tensor

from puna.errors import FormatError
from puna.model.block_quantization import dequantize_blocks
from puna.weights.checkpoint import CheckpointHeader
from puna.weights.meta import join_axis
from puna.weights.names import ExpectedTensor, rotated_heads
from puna.weights.tensor_header import BLOCKS, TensorHeader
from puna.weights.tensors import DTYPES, map_tensor

__all__ = ["StoredTensors", "half_split", "interleave"]


class StoredTensors:
    """What a checkpoint holds, tensor by tensor: `stored[expected]` for each of the header's `expected()`."""

    def __init__(self, header: CheckpointHeader) -> None:
        """Errors: FormatError: a tied model with a head that is another matrix."""
        self._header = header
        self._pieces: dict[str, list[TensorHeader]] = {}
        for tensor in header.tensors:
            self._pieces.setdefault(tensor.name, []).append(tensor)
        if header.format == "hf" and header.config.tied_embeddings and "lm_head.weight" in self._pieces:
            _check_head_copy(header, *self._pieces["lm_head.weight"], *self._pieces["model.embed_tokens.weight"])

    def __getitem__(self, expected: ExpectedTensor) -> Tensor:
        """The tensor in its stored type (blocks: float32). Errors: FormatError."""
        tensor = _joined(self._header, expected, self._pieces[expected.name])
        if self._header.format in ("hf", "puna"):
            return tensor
        heads = rotated_heads(self._header.config, expected.path)
        return tensor if heads is None else half_split(tensor, heads)

    def mapped(self, expected: ExpectedTensor) -> list[Tensor]:
        """What the file holds of a tensor, in its own layout: its shards, or the codes of its blocks; nothing is read."""
        return [map_tensor(self._header.folder, piece) for piece in self._pieces[expected.name]]

    def is_aligned(self, expected: ExpectedTensor) -> bool:
        """Whether a tensor begins where its type may begin, so that a mapping of it can be used as it is."""
        return all(piece.offset % DTYPES[piece.dtype].itemsize == 0 for piece in self._pieces[expected.name])

    def dtype(self, expected: ExpectedTensor) -> str:
        """The type in which a tensor is stored, as the format calls it."""
        return self._pieces[expected.name][0].dtype


def half_split(weight_oi: Tensor, heads: int) -> Tensor:
    """Rows of q or k from pairs (2j, 2j + 1) of each head, as Meta and GGUF have them, to halves (j, j + E/2)."""
    return weight_oi.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight_oi.shape)


def interleave(weight_oi: Tensor, heads: int) -> Tensor:
    """The inverse of `half_split`."""
    return weight_oi.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight_oi.shape)


def _joined(header: CheckpointHeader, expected: ExpectedTensor, pieces: list[TensorHeader]) -> Tensor:
    """The whole tensor; blocks become float32."""
    tensors = [map_tensor(header.folder, piece) for piece in pieces]
    if pieces[0].dtype in BLOCKS:
        return dequantize_blocks(pieces[0].dtype, tensors[0])
    if len(pieces) == 1:
        return tensors[0]
    axis = join_axis(header.folder, expected, pieces)
    if axis is not None:
        return torch.cat(tensors, axis)
    for piece, tensor in zip(pieces, tensors, strict=True):
        if not _same_bits(tensor, tensors[0]):
            raise FormatError(header.folder / piece.file, expected.name, f"the same as in {pieces[0].file}", "others")
    return tensors[0]


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def _check_head_copy(header: CheckpointHeader, head: TensorHeader, table: TensorHeader) -> None:
    """A tied model may come with a head of its own only if that is the embedding, bit for bit."""
    if not _same_bits(map_tensor(header.folder, head), map_tensor(header.folder, table)):
        raise FormatError(
            header.path, "lm_head.weight", "the embedding, since the model is tied", "another matrix",
            "set tie_word_embeddings to false if the head is meant",
        )  # fmt: skip
