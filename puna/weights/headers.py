"""What a checkpoint is, without torch: its configuration and the headers of its tensors, checked against each other.

One file `model.safetensors`, or shards with `model.safetensors.index.json`. Missing, extra, mis-shaped, duplicated or
misplaced tensors are refused by name; nothing is guessed. Format: docs/formats.md 0, 1.2 and 7.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from puna.arch.config import ModelConfig
from puna.arch.modules import parameter_count
from puna.errors import FormatError
from puna.weights.config_json import CheckpointConfig, config_from_json
from puna.weights.names import ExpectedTensor, expected_tensors
from puna.weights.safetensors_file import read_tensor_headers
from puna.weights.strict_json import JsonObject, read_object
from puna.weights.tensor_header import TensorHeader

__all__ = [
    "CONFIG_FILE",
    "INDEX_FILE",
    "WEIGHTS_FILE",
    "CheckpointHeader",
    "file_inside",
    "find_folder",
    "read_config",
    "read_header",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHARD_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}\.safetensors")
_OTHER_FORMATS = {
    "*.gguf": "GGUF",
    "params.json": "Meta's format",
    "consolidated.*.pth": "Meta's format",
    "*.bin": "a pickle",
    "*.pth": "a pickle",
    "*.pt": "a pickle",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHeader:
    """A checkpoint's configuration and tensors; a bare config.json has no tensors."""

    path: Path
    stored: CheckpointConfig
    tensors: tuple[TensorHeader, ...]

    @property
    def config(self) -> ModelConfig:
        """The model."""
        return self.stored.model

    @property
    def format(self) -> str:
        """`hf`: a plain Llama; `puna`: one with other Linears; `config`: no weights."""
        return self.stored.format if self.tensors else "config"

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that hold the tensors."""
        return tuple(sorted({tensor.file for tensor in self.tensors}))

    @property
    def parameters(self) -> int:
        """Numbers stored (codes and factors as they are); without tensors, those of the dense model."""
        if not self.tensors:
            return parameter_count(self.config)
        sizes = {tensor.name: tensor for tensor in self.tensors}
        return sum(math.prod(sizes[expected.name].shape) for expected in self.expected())

    def expected(self) -> list[ExpectedTensor]:
        """Where each tensor goes. Duplicates of a tied head and other left-overs have no place."""
        return list(expected_tensors(self.config, self.stored.linears, plain=self.stored.format == "hf"))


def read_config(path: Path) -> ModelConfig:
    """The model of a Hugging Face folder, a run folder or a config.json. Errors: FormatError."""
    return config_from_json(read_object(_config_file(path))).model


def read_header(path: Path) -> CheckpointHeader:
    """Read a Hugging Face folder, a run folder (its `model/`) or a bare config.json. Errors: FormatError."""
    config_file = _config_file(path)
    stored = config_from_json(read_object(config_file))
    if path.is_file():
        return CheckpointHeader(path=path, stored=stored, tensors=())
    folder = config_file.parent
    tensors = _read_tensors(folder)
    _check_tensors(folder, stored, tensors)
    return CheckpointHeader(path=folder, stored=stored, tensors=tensors)


def find_folder(path: Path) -> Path:
    """The Hugging Face folder at `path`: itself, or the `model/` of a run. Errors: FormatError, naming other formats."""
    for folder in (path, path / "model"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    _refuse_other_formats(path)
    raise FormatError(path, "format", "a folder with config.json and model.safetensors", "no config.json")


def file_inside(folder: Path, name: str) -> Path:
    """The path of a file in the folder. Errors: FormatError: a link that leads out of it."""
    path = folder / name
    real = Path(os.path.realpath(path))  # Path.resolve raises where links go in a circle
    if real.parent != Path(os.path.realpath(folder)):
        raise FormatError(path, "file", f"a file inside {folder}", real, "copy the file into the folder")
    return path


def _config_file(path: Path) -> Path:
    is_config = path.is_file() and path.suffix == ".json" and path.name != "params.json"
    return path if is_config else file_inside(find_folder(path), CONFIG_FILE)


def _refuse_other_formats(path: Path) -> None:
    for pattern, name in _OTHER_FORMATS.items():
        if path.match(pattern) or (path.is_dir() and any(path.glob(pattern))):
            raise FormatError(path, "format", "a Hugging Face folder", name, f"{name} is not supported here yet")


def _read_tensors(folder: Path) -> tuple[TensorHeader, ...]:
    has_file, has_index = (folder / WEIGHTS_FILE).exists(), (folder / INDEX_FILE).exists()
    if has_file and has_index:
        raise FormatError(folder, INDEX_FILE, f"{WEIGHTS_FILE} or shards", "both", "remove the one that is not meant")
    if has_index:
        return _read_shards(folder, read_object(folder / INDEX_FILE))
    if not has_file:
        _refuse_other_formats(folder)
    return read_tensor_headers(file_inside(folder, WEIGHTS_FILE))[0]


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
    unused = {entry.path for entry in stored.linears}
    for expected in expected_tensors(stored.model, stored.linears, plain=stored.format == "hf"):
        tensor = found.pop(expected.name, None)
        if tensor is None:
            raise FormatError(folder, expected.name, f"a tensor {expected.shape}", "nothing")
        if tensor.shape != expected.shape or tensor.dtype not in expected.dtypes:
            wanted = f"{expected.shape} of {' or '.join(sorted(expected.dtypes))}"
            raise FormatError(folder, expected.name, wanted, f"{tensor.shape} of {tensor.dtype}")
        unused.discard(expected.path.rpartition(".")[0])
    for path in unused:
        raise FormatError(folder / CONFIG_FILE, "puna.linears", "paths of this model's Linears", path)
    for name in found:
        if not (name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and stored.model.tied_embeddings)):
            raise FormatError(folder, name, "no such tensor in this model", found[name].shape)
