"""PEFT folders: LoRA, rsLoRA, DoRA, PiSSA and OLoRA beside Linears, the embedding and the head, as peft 0.21 has them.

    base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight (R, d_in), .lora_B.weight (d_out, R)
                                                   .lora_magnitude_vector (d_out)
    base_model.model.model.embed_tokens.lora_embedding_A (R, V), .lora_embedding_B (d, R)

Only options that change nothing, or that we compute, are accepted; every other active one is refused by name. The hash of
the base's weights and what they were rounded to travel in the tensors' metadata (`puna.base_sha256`, `puna.base_type`).
What learned beside a base of few bits with its correction is of a type of its own, which PEFT refuses by that name: no other
program forms such a base, and beside another the same numbers mean nothing.
Format: docs/formats.md 5.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from puna.arch.modules import ADAPTABLE, EMBEDDING, HEAD, LINEARS, linear_path
from puna.errors import FormatError, UsageError
from puna.files import MANIFEST, staged_folder, verify_folder, write_json, write_text
from puna.model.linears.adapter import Adapter, LoraOverride, LoraSettings, Start
from puna.weights.checkpoint import file_inside
from puna.weights.names import from_hf, to_hf
from puna.weights.safetensors_file import read_tensor_headers
from puna.weights.strict_json import JsonObject, read_object
from puna.weights.tensor_header import FLOATS, TensorHeader
from puna.weights.tensors import read_tensors, write_tensors

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "find_adapter", "load_adapter", "read_base_path", "save_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
_BASE_HASH, _BASE_TYPE = "puna.base_sha256", "puna.base_type"
_PREFIX = "base_model.model."
_PLAIN, _CORRECTED = "LORA", "PUNA_LORA_BESIDE_CORRECTED"
_LAYER = re.compile(r"layers\.(\d{1,6})\.(?:self_attn|mlp)\.(\w+)")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+")
_SUFFIXES = {"A": ".lora_A.weight", "B": ".lora_B.weight", "magnitude": ".lora_magnitude_vector"}
_TABLE_SUFFIXES = {"A": ".lora_embedding_A", "B": ".lora_embedding_B"}
_COPY = ".base_layer.weight"  # peft repeats the base's table where an adapter stands beside it
_READ = {
    *("peft_type", "r", "lora_alpha", "target_modules", "bias", "init_lora_weights"),
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
}
_INERT = {  # these say nothing about the tensors, or nothing without an option that is refused
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "auto_mapping"),
    *("megatron_core", "qalora_group_size", "peft_version"),
}
_STARTS: dict[
    object, Start
] = {  # the first three leave the base as it is: what A and B began as does not matter any more
    True: "zeros",
    False: "zeros",
    "gaussian": "zeros",
    "pissa": "pissa",
    "olora": "olora",
}


@dataclass(frozen=True, slots=True)
class _Place:
    """What a tensor is: `part` (A, B, magnitude, or a copy of the base's weight) of a module."""

    path: str
    part: str

    @property
    def name(self) -> str:
        """Its name in the file."""
        suffix = _COPY if self.part == "copy" else _suffixes(self.path)[self.part]
        return f"{_PREFIX}{to_hf(self.path + suffix)}"


def save_adapter(adapter: Adapter, folder: Path, base: str, card: str = "") -> None:
    """Write a sealed PEFT folder.

    Args: base: where the base model is, as a path; PEFT's base_model_name_or_path. card: Markdown about it, if there is any.
    """
    settings = adapter.settings
    config: dict[str, Any] = {
        "peft_type": _CORRECTED if adapter.beside_corrected else _PLAIN,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": _whole(settings.alpha),
        "lora_dropout": 0.0,
        "target_modules": sorted(settings.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": settings.rank_stabilized,
        "use_dora": settings.magnitudes,
        "modules_to_save": None,
        "rank_pattern": {each.target: each.rank for each in settings.overrides if each.rank is not None},
        "alpha_pattern": {each.target: _whole(each.alpha) for each in settings.overrides if each.alpha is not None},
        "init_lora_weights": settings.start if settings.start != "zeros" else True,
    }
    tensors = {
        _Place(path, letter).name: tensor
        for path, pair in adapter.tensors.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }
    tensors |= {_Place(path, "magnitude").name: tensor for path, tensor in adapter.magnitudes.items()}
    tensors |= {_Place(path, "copy").name: tensor for path, tensor in adapter.copies.items()}
    known = {_BASE_HASH: adapter.base_sha256, _BASE_TYPE: adapter.base_type}
    metadata = {"format": "pt"} | {key: value for key, value in known.items() if value is not None}
    with staged_folder(folder) as staged:
        write_tensors(staged / ADAPTER_WEIGHTS, tensors, metadata)
        write_json(staged / ADAPTER_CONFIG, config)
        if card:
            write_text(staged / CARD, card)


def load_adapter(path: Path) -> Adapter:
    """Read a PEFT folder, or the `adapter/` of a run; tensors keep their types.

    Raises: FormatError: an active option that we lack, tensors that do not fit the settings, NaN or infinity.
            CheckpointMismatch: a folder we wrote was changed since.
    """
    folder = find_adapter(path)
    if (folder / MANIFEST).exists():
        verify_folder(folder)
    record = read_object(file_inside(folder, ADAPTER_CONFIG))
    settings = _read_settings(record)
    weights = file_inside(folder, ADAPTER_WEIGHTS)
    headers, metadata = read_tensor_headers(weights)
    places = {header.name: _place(weights, header, settings) for header in headers}
    _check_complete(weights, set(places.values()), settings)
    found = {places[name]: tensor for name, tensor in read_tensors(weights, dict.fromkeys(places))}

    def parts(part: str) -> dict[str, Tensor]:
        return {place.path: tensor for place, tensor in found.items() if place.part == part}

    a, b = parts("A"), parts("B")
    return Adapter(
        settings=settings,
        tensors={path: (a[path], b[path]) for path in sorted(a, key=_model_order)},
        magnitudes=parts("magnitude"),
        copies=parts("copy"),
        base_sha256=metadata.get(_BASE_HASH),
        base_type=metadata.get(_BASE_TYPE),
        beside_corrected=record.values["peft_type"] == _CORRECTED,
    )


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
    record.one_of("peft_type", (_PLAIN, _CORRECTED), expected=_PLAIN, hint="other kinds of adapters are not supported")
    if record.values.get("bias", "none") != "none":
        raise record.refuse("bias", "none", "biases are not supported")
    start = record.values.get("init_lora_weights", True)
    if not isinstance(start, bool | str) or start not in _STARTS:
        raise record.refuse(
            "init_lora_weights", "true, false, gaussian, pissa or olora", "other starts are not supported"
        )
    for key, value in record.values.items():
        if value and key not in _READ | _INERT:
            raise record.refuse(key, "nothing active", f"{key} is not supported")
    names = {_last_name(target) for target in record.items("target_modules")}
    if not names or not names <= set(ADAPTABLE):
        raise record.refuse("target_modules", f"names among {', '.join(ADAPTABLE)}")
    try:
        return LoraSettings(
            rank=record.integer("r"),
            alpha=record.number("lora_alpha"),
            targets=tuple(name for name in ADAPTABLE if name in names),
            overrides=_read_overrides(record),
            rank_stabilized=record.flag("use_rslora", default=False),
            magnitudes=record.flag("use_dora", default=False),
            start=_STARTS[start],
        )
    except UsageError as error:
        raise FormatError(record.path, "settings", "settings that we compute", error.message, error.hint) from None


def _read_overrides(record: JsonObject) -> tuple[LoraOverride, ...]:
    """rank_pattern and alpha_pattern; their keys are whole ends of paths, not other regular expressions."""
    overrides = []
    for pattern in ("rank_pattern", "alpha_pattern"):
        table = record.nested(pattern, record.values.get(pattern) or {})
        for key in table.values:
            if not _PLAIN_NAME.fullmatch(key):
                raise table.refuse(key, "a name or path of a module", "other regular expressions are not supported")
            if pattern == "rank_pattern":
                overrides.append(LoraOverride(target=key, rank=table.integer(key)))
            else:
                overrides.append(LoraOverride(target=key, alpha=table.number(key)))
    return tuple(overrides)


def _last_name(target: object) -> str:
    """peft writes `q_proj`, or whole paths when it was asked for all Linears; which layers, the tensors tell."""
    return target.rpartition(".")[2] if isinstance(target, str) else ""


def _place(path: Path, header: TensorHeader, settings: LoraSettings) -> _Place:
    """What a tensor is, whose rank and type are checked; its widths are when it meets a model."""
    place = _parse(header.name, settings)
    if place is None:
        raise FormatError(path, header.name, f"LoRA tensors of {', '.join(settings.targets)}", "another name")
    rank = settings.rank_of(place.path)
    fits = len(header.shape) == (1 if place.part == "magnitude" else 2) and header.dtype in FLOATS
    if place.part in "AB":
        fits = fits and header.shape[0 if place.part == "A" else 1] == rank
    if not fits:
        kind = f"a float matrix of rank {rank}" if place.part in "AB" else "floats of the base's shape"
        raise FormatError(path, header.name, kind, f"{header.shape} {header.dtype}")
    return place


def _parse(name: str, settings: LoraSettings) -> _Place | None:
    """The place that is written exactly so, if there is one."""
    short = from_hf(name.removeprefix(_PREFIX))
    layer = _LAYER.match(short)
    if layer and layer[2] in LINEARS:
        module = linear_path(int(layer[1]), layer[2])
    else:
        module = short.partition(".")[0]
    if module.rpartition(".")[2] not in settings.targets:
        return None
    parts = [part for part in _suffixes(module) if part != "magnitude" or settings.magnitudes]
    if module in (EMBEDDING, HEAD):
        parts.append("copy")
    return next((place for part in parts if (place := _Place(module, part)).name == name), None)


def _suffixes(path: str) -> dict[str, str]:
    return _TABLE_SUFFIXES if path == EMBEDDING else _SUFFIXES


def _check_complete(path: Path, places: set[_Place], settings: LoraSettings) -> None:
    """Every target has all its parts, in every layer up to the last one."""
    last = max((int(layer[1]) for place in places if (layer := _LAYER.match(place.path))), default=0)
    layers = 1 + min(last, len(places))  # a lie about the last one is found out without counting up to it
    modules = [name for name in settings.targets if name in (EMBEDDING, HEAD)]
    modules += [linear_path(layer, name) for layer in range(layers) for name in settings.targets if name in LINEARS]
    parts = ("A", "B", "magnitude") if settings.magnitudes else ("A", "B")
    for module in modules:
        for part in parts:
            if _Place(module, part) not in places:
                raise FormatError(path, module + _suffixes(module)[part], "a tensor", "nothing")


def _model_order(path: str) -> tuple[int, int, int]:
    layer = _LAYER.fullmatch(path)
    return (1, int(layer[1]), LINEARS.index(layer[2])) if layer else (0 if path == EMBEDDING else 2, 0, 0)


def _whole(number: float) -> float:
    """3 rather than 3.0, as peft writes it."""
    return int(number) if number == int(number) else number
