"""A Hugging Face folder without torch: config.json, and the tensors of `model.safetensors` or of the shards of an index.

Missing, extra, mis-shaped, duplicated or misplaced tensors are refused by name; nothing is guessed.
Format: docs/formats.md 1.2 and 7.
"""

import re
from pathlib import Path

from puna.errors import FormatError
from puna.weights.checkpoint import CheckpointConfig, CheckpointHeader, check_tensor, file_inside
from puna.weights.config_json import config_from_json
from puna.weights.safetensors_file import read_tensor_headers
from puna.weights.strict_json import JsonObject, read_object
from puna.weights.tensor_header import TensorHeader

__all__ = ["CONFIG_FILE", "INDEX_FILE", "WEIGHTS_FILE", "read_hf_folder", "refuse_pickles"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth")
_SHARD_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}\.safetensors")


def read_hf_folder(folder: Path) -> CheckpointHeader:
    """The checkpoint in a folder with config.json. Errors: FormatError."""
    stored = config_from_json(read_object(file_inside(folder, CONFIG_FILE)))
    tensors = _read_tensors(folder)
    _check_tensors(folder, stored, tensors)
    return CheckpointHeader(path=folder, stored=stored, tensors=tensors)


def _read_tensors(folder: Path) -> tuple[TensorHeader, ...]:
    has_file, has_index = (folder / WEIGHTS_FILE).exists(), (folder / INDEX_FILE).exists()
    if has_file and has_index:
        raise FormatError(folder, INDEX_FILE, f"{WEIGHTS_FILE} or shards", "both", "remove the one that is not meant")
    if has_index:
        return _read_shards(folder, read_object(folder / INDEX_FILE))
    if not has_file:
        refuse_pickles(folder)
    return read_tensor_headers(file_inside(folder, WEIGHTS_FILE))[0]


def refuse_pickles(place: Path) -> None:
    """Errors: FormatError naming a file, at `place` or in it, that could run code when it is read."""
    for path in sorted(place.iterdir()) if place.is_dir() else [place]:
        if path.suffix in _PICKLES:
            hint = "only safetensors, GGUF and Meta's consolidated.*.pth with params.json are read"
            raise FormatError(place, "format", "a checkpoint", f"a pickle, {path.name}", hint)


def _read_shards(folder: Path, index: JsonObject) -> tuple[TensorHeader, ...]:
    """The tensors of all shards, which must be exactly those that the index lists, each in its file."""
    weight_map = index.child("weight_map").values
    for name, file in weight_map.items():
        if not (isinstance(file, str) and _SHARD_NAME.fullmatch(file)):
            raise index.child("weight_map").refuse(name, "the name of a safetensors file beside the index")
    tensors = tuple(
        tensor
        for file in sorted(set(weight_map.values()))
        for tensor in read_tensor_headers(file_inside(folder, file))[0]
    )
    stray = {(tensor.name, tensor.file) for tensor in tensors} ^ set(weight_map.items())
    if stray:
        name, file = min(stray)
        raise FormatError(folder / INDEX_FILE, name, "the same tensors in the index and in the shards", f"{file}")
    return tensors


def _check_tensors(folder: Path, stored: CheckpointConfig, tensors: tuple[TensorHeader, ...]) -> None:
    found = {tensor.name: tensor for tensor in tensors}
    unused = {path for entry in stored.linears for path in entry.paths}
    for expected in stored.expected():
        check_tensor(folder, expected, found.pop(expected.name, None))
        unused.discard(expected.module)
    for path in unused:
        raise FormatError(folder / CONFIG_FILE, "puna.linears", "paths of this model's Linears", path)
    for name in found:
        if not (name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and stored.model.tied_embeddings)):
            raise FormatError(folder, name, "no such tensor in this model", found[name].shape)
