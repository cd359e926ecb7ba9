"""A Meta folder without torch in this process: params.json, and the headers of every consolidated.NN.pth.

A child process reads the pickles and hands back where each tensor's bytes stand (weights/pth.py).
Format: docs/formats.md 3.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.errors import FormatError
from puna.weights.checkpoint import CheckpointHeader, file_inside
from puna.weights.meta import PARAMS_FILE, MetaSettings, consolidated_files, join_axis, meta_config
from puna.weights.names import expected_tensors
from puna.weights.pth import read_pth_headers
from puna.weights.strict_json import read_object
from puna.weights.tensor_header import TensorHeader

__all__ = ["read_meta_folder"]

_PIECE_BYTES = 1 << 20


def read_meta_folder(folder: Path, settings: MetaSettings) -> CheckpointHeader:
    """The checkpoint in a folder with params.json: every shard holds its part of every tensor. Errors: FormatError."""
    record, names = read_object(file_inside(folder, PARAMS_FILE)), consolidated_files(folder)
    shards = read_pth_headers([file_inside(folder, name) for name in names])
    tensors = tuple(tensor for shard in shards for tensor in shard if not tensor.name.endswith("rope.freqs"))
    stored = meta_config(record, tensors, settings, is_tied=_same_bytes(folder, tensors))
    by_name: dict[str, list[TensorHeader]] = {}
    for tensor in tensors:
        by_name.setdefault(tensor.name, []).append(tensor)
    if stored.model.n_kv_heads % len(names):
        raise record.refuse("n_kv_heads", f"a multiple of the {len(names)} shards")
    for expected in expected_tensors(stored.model, kind="meta"):
        pieces = by_name.pop(expected.name, [])
        if len(pieces) != len(names):
            raise FormatError(folder, expected.name, f"a part in each of {len(names)} shards", f"{len(pieces)}")
        join_axis(folder, expected, pieces)
    by_name.pop("output.weight", None)
    for name, pieces in by_name.items():
        raise FormatError(folder, name, "no such tensor in this model", pieces[0].shape)
    return CheckpointHeader(path=folder, stored=stored, tensors=tensors)


def _same_bytes(folder: Path, tensors: Sequence[TensorHeader]) -> bool:
    """Whether head and embedding hold the same bytes, shard by shard: then the model is tied."""
    heads, tables = (
        [tensor for tensor in tensors if tensor.name == f"{name}.weight"] for name in ("output", "tok_embeddings")
    )
    if not heads or [(each.shape, each.dtype) for each in heads] != [(each.shape, each.dtype) for each in tables]:
        return not heads
    return all(
        piece == other
        for head, table in zip(heads, tables, strict=True)
        for piece, other in zip(_pieces(folder, head), _pieces(folder, table), strict=True)
    )


def _pieces(folder: Path, tensor: TensorHeader) -> Iterator[bytes]:
    with (folder / tensor.file).open("rb") as file:
        file.seek(tensor.offset)
        for start in range(0, tensor.bytes, _PIECE_BYTES):
            yield file.read(min(_PIECE_BYTES, tensor.bytes - start))
