"""Hugging Face folders: write a model, read a model, each tensor once.

A model whose Linears are all dense is a plain Llama that transformers loads; any other is stored under `puna.` names
with a list of what stands where. Folders we write are sealed by a manifest, and checked against it when read.
Format: docs/formats.md 1.2, 1.3 and 7.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from puna.errors import FormatError, UsageError
from puna.files import MANIFEST, sha256_file, staged_folder, verify_folder, write_json
from puna.model.linears.int8 import Int8Linear
from puna.model.linears.kind import AnyLinear
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.positions import rope_frequencies
from puna.model.surgery import get_linear, named_linears, replace_linear
from puna.tokens.tokenizer import Tokenizer
from puna.weights.config_json import config_to_json
from puna.weights.headers import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, CheckpointHeader, find_folder, read_header
from puna.weights.names import Int8Entry, LinearEntry, LowRankEntry, expected_tensors
from puna.weights.tensors import read_tensors, write_tensors

__all__ = ["GENERATION_FILE", "load_folder", "save_folder", "weights_sha256"]

GENERATION_FILE = "generation_config.json"
_SHARD_BYTES = 5_000_000_000


def save_folder(
    model: Llama,
    folder: Path,
    tokenizer: Tokenizer | None = None,
    record: Mapping[str, object] | None = None,
    *,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write a model as a sealed folder, in its own types; a tied head is not written.

    Args:   record: where the model came from; kept in the manifest, and in config.json if that has a `puna` section.
            shard_bytes: more than this go into several files.
    Raises: UsageError: an adapter is attached.
    """
    linears = [entry for path, linear in named_linears(model) if (entry := _entry(path, linear)) is not None]
    state = model.state_dict()
    expected = expected_tensors(model.config, linears, plain=not linears)
    tensors = {tensor.name: state[tensor.path] for tensor in expected}
    bos_id, eos_ids = (None, ()) if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_ids)
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    config = config_to_json(model.config, bos_id=bos_id, eos_ids=eos_ids, dtype=dtype, linears=linears, record=record)
    with staged_folder(folder, None if record is None else {"record": dict(record)}) as staged:
        _write_shards(staged, tensors, shard_bytes)
        write_json(staged / CONFIG_FILE, config)
        write_json(staged / GENERATION_FILE, {key: config[key] for key in config if key.endswith("_token_id")})
        if tokenizer is not None:
            tokenizer.save(staged)


def load_folder(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Llama:
    """Read a model from a Hugging Face folder or a run folder, each Linear of the kind it was stored as.

    Args:   dtype: the type of weights and factors, whatever the file's; int8 codes and their scales keep theirs.
    Raises: FormatError: anything that formats.md refuses, NaN and infinity included.
            CheckpointMismatch: a folder we wrote was changed since.
    """
    folder = find_folder(folder)
    if (folder / MANIFEST).exists():
        verify_folder(folder)
    header = read_header(folder)
    model, state = _unfilled(header), _read_state(header, device, dtype)
    if header.config.tied_embeddings:
        _check_head_copy(header)
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if header.config.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    model.frequencies_P = rope_frequencies(header.config).to(device)
    return model


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's safetensors files, in hexadecimal."""
    header = read_header(folder)
    lines = "".join(f"{name} {sha256_file(header.path / name)}\n" for name in header.files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _entry(path: str, linear: AnyLinear) -> LinearEntry | None:
    match linear:
        case nn.Linear():
            return None
        case LowRankLinear():
            return LowRankEntry(path=path, rank=linear.rank)
        case Int8Linear():
            return Int8Entry(path=path)
        case _:
            raise UsageError(f"{path}: {type(linear).__name__} cannot be stored in a model", "merge the adapter first")


def _write_shards(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if used > 0 and used + tensor.nbytes > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS_FILE, tensors)
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, shard)
        weight_map.update(dict.fromkeys(shard, file))
    sizes = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    counts = {"total_parameters": sum(tensor.numel() for tensor in tensors.values())}
    write_json(folder / INDEX_FILE, {"metadata": {**sizes, **counts}, "weight_map": weight_map})


def _unfilled(header: CheckpointHeader) -> Llama:
    """The model without storage, the right kind of Linear at every path."""
    with torch.device("meta"):
        model = Llama(header.config)
        for entry in header.stored.linears:
            dense = get_linear(model, entry.path)
            replace_linear(model, entry.path, _empty(entry, dense.out_features, dense.in_features))
    return model


def _empty(entry: LinearEntry, d_out: int, d_in: int) -> AnyLinear:
    match entry:
        case LowRankEntry():
            return LowRankLinear.empty(d_out, d_in, entry.rank)
        case Int8Entry():
            return Int8Linear(torch.empty(d_out, d_in, dtype=torch.int8), torch.empty(d_out, 1))


def _read_state(header: CheckpointHeader, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    expected = {tensor.name: tensor for tensor in header.expected()}
    dtypes = {name: dtype if tensor.is_converted else None for name, tensor in expected.items()}
    return {
        expected[name].path: tensor
        for file in header.files
        for name, tensor in read_tensors(header.path / file, dtypes, device)
    }


def _check_head_copy(header: CheckpointHeader) -> None:
    """A tied model may come with a head of its own only if that is the embedding, bit for bit."""
    pair = [tensor for tensor in header.tensors if tensor.name in ("lm_head.weight", "model.embed_tokens.weight")]
    if len(pair) < 2:
        return
    first, second = (
        next(tensor for _, tensor in read_tensors(header.path / item.file, {item.name: None})) for item in pair
    )
    if first.dtype != second.dtype or not torch.equal(first.view(torch.uint8), second.view(torch.uint8)):
        raise FormatError(
            header.path, "lm_head.weight", "the embedding, since the model is tied", "another matrix",
            "set tie_word_embeddings to false if the head is meant",
        )  # fmt: skip
