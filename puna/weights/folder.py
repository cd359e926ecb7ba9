"""Writing a Hugging Face folder: a model as it stands, its shards, its configuration and its tokenizer.

A model whose Linears are all dense is a plain Llama that transformers loads; any other is stored under `puna.` names
with a list of what stands where. Folders we write are sealed by a manifest.
Format: docs/formats.md 1.2, 1.3 and 7.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from puna.arch.modules import HEAD
from puna.files import staged_folder, write_json
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.fused import fused_paths
from puna.model.llama import Llama
from puna.model.surgery import named_linears
from puna.tokens.tokenizer import Tokenizer
from puna.weights.checkpoint import CheckpointConfig, CheckpointHeader
from puna.weights.config_json import config_to_json
from puna.weights.hf_folder import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from puna.weights.kinds import entry_of
from puna.weights.names import FusedEntry, LinearEntry, LowRankEntry, expected_tensors
from puna.weights.strict_json import read_object
from puna.weights.tensors import TensorSpec, sorted_specs, spec_bytes, spec_of, write_safetensors

__all__ = [
    "GENERATION_FILE",
    "SHARD_BYTES",
    "generation_settings",
    "save_folder",
    "special_ids",
    "write_settings",
    "write_shards",
]

GENERATION_FILE = "generation_config.json"
SHARD_BYTES = 5_000_000_000


def save_folder(
    model: Llama,
    folder: Path,
    tokenizer: Tokenizer | None = None,
    record: Mapping[str, object] | None = None,
    *,
    base: CheckpointHeader | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model as a sealed folder, in its own types; a tied head is not written.

    Args:   base: the checkpoint that the model was made from: its special ids and settings of generation are kept.
            record: where the model came from; kept in the manifest, and in config.json if that has a `puna` section. Without
            it the base's own is kept where compressed Linears are.
            shard_bytes: more than this go into several files.
    Raises: UsageError: an adapter is attached.
    """
    linears, state = list(_entries(model)), model.state_dict()
    rank = model.embed_tokens.rank if isinstance(model.embed_tokens, FactoredEmbedding) else None
    kind: Literal["hf", "puna"] = "puna" if linears or rank is not None or model.config.variants else "hf"
    expected = expected_tensors(model.config, linears, rank, kind=kind)
    tensors = {tensor.name: state[tensor.path] for tensor in expected}
    stored = None if base is None else base.stored
    if record is None and stored is not None and kind == "puna":
        record = stored.compression
    bos_id, eos_ids = special_ids(stored, tokenizer)
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    config = config_to_json(
        model.config, bos_id=bos_id, eos_ids=eos_ids, dtype=dtype, linears=linears, embedding_rank=rank, record=record,
        pad_id=None if stored is None else stored.pad_id,
    )  # fmt: skip
    with staged_folder(folder, None if record is None else {"record": dict(record)}) as staged:
        write_shards(staged, [spec_of(*item) for item in tensors.items()], tensors.__getitem__, shard_bytes)
        write_settings(staged, config, tokenizer, None if base is None else generation_settings(base))


def special_ids(stored: CheckpointConfig | None, tokenizer: Tokenizer | None) -> tuple[int | None, tuple[int, ...]]:
    """(BOS, what ends a text or a turn): a checkpoint's own; the tokenizer's where it names none."""
    bos_id, eos_ids = (None, ()) if stored is None else (stored.bos_id, stored.eos_ids)
    if tokenizer is None:
        return bos_id, eos_ids
    return tokenizer.bos_id if bos_id is None else bos_id, eos_ids or tokenizer.eos_ids


def generation_settings(header: CheckpointHeader) -> Mapping[str, Any] | None:
    """The generation_config.json beside a Hugging Face checkpoint, if there is one. Errors: FormatError."""
    file = header.folder / GENERATION_FILE
    return read_object(file).values if header.format in ("hf", "puna") and file.is_file() else None


def write_settings(
    staged: Path,
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write what stands beside the weights: config.json, the settings of generation, the tokenizer.

    Args: generation: a generation_config.json to keep; None: the special ids of the configuration alone.
    """
    ids = {key: config[key] for key in config if key.endswith("_token_id")}
    write_json(staged / CONFIG_FILE, config)
    write_json(staged / GENERATION_FILE, ids if generation is None else generation)
    if tokenizer is not None:
        tokenizer.save(staged)


def write_shards(
    staged: Path, specs: Sequence[TensorSpec], read: Callable[[str], Tensor], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as model.safetensors, or as shards of at most `shard_bytes` each and their index.

    Args: specs: in model order. read: gives a tensor by its name when it is to be written.
    """
    shards = list(_shards(specs, shard_bytes))
    if len(shards) == 1:
        _write_shard(staged / WEIGHTS_FILE, shards[0], read)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(staged / file, shard, read)
        weight_map.update((name, file) for name, _, _ in shard)
    sizes = {"total_size": sum(map(spec_bytes, specs))}
    counts = {"total_parameters": sum(math.prod(shape) for _, _, shape in specs)}
    write_json(staged / INDEX_FILE, {"metadata": {**sizes, **counts}, "weight_map": weight_map})


def _shards(specs: Sequence[TensorSpec], shard_bytes: int) -> Iterator[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    for spec in specs:
        if shard and sum(map(spec_bytes, (*shard, spec))) > shard_bytes:
            yield shard
            shard = []
        shard.append(spec)
    yield shard


def _write_shard(staged: Path, shard: Sequence[TensorSpec], read: Callable[[str], Tensor]) -> None:
    specs = sorted_specs(shard)
    write_safetensors(staged, specs, (read(name) for name, _, _ in specs))


def _entries(model: Llama) -> Iterator[LinearEntry]:
    """What is not dense, in model order; a group that shares a factor stands where its first member does."""
    groups = {path: paths for paths in fused_paths(named_linears(model)) for path in paths}
    for path, linear in named_linears(model):
        entry = entry_of(path, linear)
        if isinstance(entry, LowRankEntry) and path in groups:
            is_first = path == groups[path][0]
            entry = FusedEntry(paths=groups[path], rank=entry.rank, factors=entry.factors) if is_first else None
        if entry is not None:
            yield entry
    is_shared = model.config.tied_embeddings and isinstance(model.embed_tokens, FactoredEmbedding)
    if not is_shared and (head := entry_of(HEAD, model.lm_head)) is not None:
        yield head
