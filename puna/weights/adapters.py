"""PEFT folders: a LoRA over the Linears of the blocks, as peft 0.21 writes and reads it.

    base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight (R, d_in), .lora_B.weight (d_out, R)

Only options that change nothing, or that we compute, are accepted; every other active one is refused by name. The hash of
the base's weights travels in the tensors' metadata (`puna.base_sha256`). Format: docs/formats.md 5.
"""

import math
import re
from pathlib import Path
from typing import Any

from puna.arch.modules import LINEARS, linear_path
from puna.errors import FormatError
from puna.files import MANIFEST, staged_folder, verify_folder, write_json
from puna.model.linears.lora import Adapter, LoraSettings
from puna.weights.checkpoint import file_inside
from puna.weights.names import from_hf, to_hf
from puna.weights.safetensors_file import read_tensor_headers
from puna.weights.strict_json import JsonObject, read_object
from puna.weights.tensor_header import FLOATS, TensorHeader
from puna.weights.tensors import read_tensors, write_tensors

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "find_adapter", "load_adapter", "read_base_path", "save_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_BASE_HASH = "puna.base_sha256"
_PREFIX = "base_model.model."
_TENSOR_NAME = re.compile(r"layers\.(\d{1,6})\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
_READ = {"peft_type", "r", "lora_alpha", "target_modules", "bias", "init_lora_weights"}
_INERT = {  # these say nothing about the tensors, or nothing without an option that is refused
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "auto_mapping"),
    *("megatron_core", "qalora_group_size", "peft_version"),
}
_PLAIN_STARTS = (True, False, "gaussian")  # the base stays as it is; what A and B began as does not matter any more


def save_adapter(adapter: Adapter, folder: Path, base: str) -> None:
    """Write a sealed PEFT folder. Args: base: where the base model is, as a path; PEFT's base_model_name_or_path."""
    settings = adapter.settings
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(settings.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
    }
    tensors = {
        f"{_PREFIX}{to_hf(path)}.lora_{letter}.weight": tensor
        for path, pair in adapter.tensors.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }
    metadata = ("format", "pt") if adapter.base_sha256 is None else (_BASE_HASH, adapter.base_sha256)
    with staged_folder(folder) as staged:
        write_tensors(staged / ADAPTER_WEIGHTS, tensors, metadata)
        write_json(staged / ADAPTER_CONFIG, config)


def load_adapter(path: Path) -> Adapter:
    """Read a PEFT folder, or the `adapter/` of a run; tensors keep their types.

    Raises: FormatError: an active option that we lack, tensors that do not fit the settings, NaN or infinity.
            CheckpointMismatch: a folder we wrote was changed since.
    """
    folder = find_adapter(path)
    if (folder / MANIFEST).exists():
        verify_folder(folder)
    settings = _read_settings(read_object(file_inside(folder, ADAPTER_CONFIG)))
    weights = file_inside(folder, ADAPTER_WEIGHTS)
    headers, metadata = read_tensor_headers(weights)
    places = {header.name: _place(weights, header, settings) for header in headers}
    _check_complete(weights, set(places.values()), settings)
    found = {places[name]: tensor for name, tensor in read_tensors(weights, dict.fromkeys(places))}
    paths = sorted({(layer, name) for layer, name, _ in places.values()}, key=lambda at: (at[0], LINEARS.index(at[1])))
    tensors = {linear_path(*at): (found[*at, "A"], found[*at, "B"]) for at in paths}
    return Adapter(settings=settings, tensors=tensors, base_sha256=metadata.get(_BASE_HASH))


def find_adapter(path: Path) -> Path:
    """The PEFT folder at `path`: itself, or the `adapter/` of a run. Errors: FormatError."""
    for folder in (path, path / "adapter"):
        if (folder / ADAPTER_CONFIG).is_file():
            return folder
    raise FormatError(path, "format", f"a folder with {ADAPTER_CONFIG}", "no such file")


def read_base_path(path: Path) -> Path | None:
    """The base model that an adapter names, if that is a folder here; a relative path starts at the adapter."""
    folder = find_adapter(path)
    base = read_object(file_inside(folder, ADAPTER_CONFIG)).values.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        return None
    return folder / base if (folder / base).is_dir() else None


def _read_settings(record: JsonObject) -> LoraSettings:
    record.one_of("peft_type", ("LORA",), expected="LORA", hint="other kinds of adapters are not supported")
    if record.values.get("bias", "none") != "none":
        raise record.refuse("bias", "none", "biases are not supported")
    if record.values.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise record.refuse("init_lora_weights", "true, false or gaussian", "such a start changes the base model")
    for key, value in record.values.items():
        if value and key not in _READ | _INERT:
            raise record.refuse(key, "nothing active", f"{key} is not supported")
    names = {_last_name(target) for target in record.items("target_modules")}
    if not names or not names <= set(LINEARS):
        raise record.refuse("target_modules", f"names among {', '.join(LINEARS)}")
    targets = tuple(name for name in LINEARS if name in names)
    return LoraSettings(rank=record.integer("r"), alpha=record.number("lora_alpha"), targets=targets)


def _last_name(target: object) -> str:
    """peft writes `q_proj`, or whole paths when it was asked for all Linears; which layers, the tensors tell."""
    return target.rpartition(".")[2] if isinstance(target, str) else ""


def _place(path: Path, header: TensorHeader, settings: LoraSettings) -> tuple[int, str, str]:
    """(layer, Linear, A or B) of a tensor, whose rank and type are checked; its widths are when it meets a model."""
    match = _TENSOR_NAME.fullmatch(from_hf(header.name.removeprefix(_PREFIX)))
    layer, name, letter = (int(match[1]), match[2], match[3]) if match else (0, "", "")
    if (
        name not in settings.targets
        or header.name != f"{_PREFIX}{to_hf(linear_path(layer, name))}.lora_{letter}.weight"
    ):
        raise FormatError(path, header.name, f"LoRA tensors of {', '.join(settings.targets)}", "another name")
    rank = header.shape[0 if letter == "A" else -1] if len(header.shape) == 2 else None
    if rank != settings.rank or header.dtype not in FLOATS:
        raise FormatError(
            path, header.name, f"a float matrix of rank {settings.rank}", f"{header.shape} {header.dtype}"
        )
    return layer, name, letter


def _check_complete(path: Path, places: set[tuple[int, str, str]], settings: LoraSettings) -> None:
    """Every target has both factors in every layer up to the last one."""
    layers = math.ceil(len(places) / (2 * len(settings.targets)))
    for layer in range(max(layers, 1)):
        for name in settings.targets:
            for letter in "AB":
                if (layer, name, letter) not in places:
                    raise FormatError(path, f"{linear_path(layer, name)}.lora_{letter}", "a tensor", "nothing")
