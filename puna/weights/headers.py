"""What stands at a path, without torch: a Hugging Face or Meta folder, a run, a GGUF file, or a configuration alone."""

import re
from pathlib import Path

from puna.arch.config import ModelConfig
from puna.errors import FormatError
from puna.weights.checkpoint import CheckpointConfig, CheckpointHeader, file_inside
from puna.weights.config_json import config_from_json
from puna.weights.gguf import read_gguf
from puna.weights.gguf_config import gguf_config, read_gguf_file
from puna.weights.hf_folder import CONFIG_FILE, read_hf_folder, refuse_pickles
from puna.weights.meta import PARAMS_FILE, MetaSettings
from puna.weights.meta_folder import read_meta_folder
from puna.weights.strict_json import read_object

__all__ = ["find_checkpoint", "is_hub_name", "read_config", "read_header", "read_stored"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def read_config(path: Path, meta: MetaSettings | None = None) -> ModelConfig:
    """The model of a checkpoint of any format, or of a config.json. Errors: FormatError."""
    return read_stored(path, meta).model


def read_stored(path: Path, meta: MetaSettings | None = None) -> CheckpointConfig:
    """The model and how it is stored, by the same; no tensor need be there. Errors: FormatError."""
    place = find_checkpoint(path)
    if _is_gguf(place):
        return gguf_config(read_gguf(place))
    if _is_meta(place):
        return read_header(place, meta).stored
    return config_from_json(read_object(place if place.is_file() else file_inside(place, CONFIG_FILE)))


def read_header(path: Path, meta: MetaSettings | None = None) -> CheckpointHeader:
    """Read a Hugging Face, Meta or run folder (its `model/`), a GGUF file or a bare config.json.

    Args:   meta: what a Meta folder does not say itself.
    Errors: FormatError.
    """
    place = find_checkpoint(path)
    if _is_gguf(place):
        return read_gguf_file(place)
    if _is_meta(place):
        return read_meta_folder(place, meta or MetaSettings())
    if place.is_file():
        return CheckpointHeader(path=place, stored=config_from_json(read_object(place)), tensors=())
    return read_hf_folder(place)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`: a GGUF file, a config.json, a Hugging Face or Meta folder, or the `model/` of a run.

    Errors: FormatError, naming what is there instead.
    """
    if path.is_file() and (_is_gguf(path) or (path.suffix == ".json" and path.name != PARAMS_FILE)):
        return path
    for folder in (path, path / "model"):
        if (folder / CONFIG_FILE).is_file() or _is_meta(folder):
            return folder
    _refuse_what_is_there(path)
    raise FormatError(path, "format", "a folder with config.json and model.safetensors", "no config.json")


def is_hub_name(name: str) -> bool:
    """Whether a path that is not here reads like `owner/model` on a hub."""
    return _HUB_NAME.fullmatch(name) is not None


def _is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf"


def _is_meta(path: Path) -> bool:
    return (path / PARAMS_FILE).is_file() and not (path / CONFIG_FILE).is_file()


def _refuse_what_is_there(path: Path) -> None:
    if not path.exists():
        hint = f"hf download {path} --local-dir {path.name}" if is_hub_name(str(path)) else "check the path"
        raise FormatError(path, "format", "a checkpoint", "no such file or folder", hint)
    if (path / "adapter_config.json").is_file() or (path / "adapter" / "adapter_config.json").is_file():
        raise FormatError(path, "format", "a model", "an adapter", "name its base, and this one with --adapter")
    if path.suffix == ".safetensors":
        raise FormatError(path, "format", "a checkpoint's folder", "a file of it", f"name {path.parent}")
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if files:
        raise FormatError(path, "format", "a checkpoint's folder or file", "a folder of GGUF files", f"name {files[0]}")
    if path.name == PARAMS_FILE or path.match("consolidated.*.pth"):
        raise FormatError(path, "format", "a Meta folder", "a file of it", f"name {path.parent}")
    refuse_pickles(path)
