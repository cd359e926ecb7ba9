"""The three formats as they are written: parameters by name and type, read one at a time and never held together.

Format: docs/formats.md 1 (hf), 3 (meta), 6 (gguf).
"""

import itertools
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from puna.arch.rope_scaling import Llama3Scaling
from puna.files import staged_file, staged_folder, write_json
from puna.model.block_quantization import quantize_blocks
from puna.tokens.gguf_vocabulary import gguf_metadata
from puna.tokens.tokenizer import Tokenizer
from puna.weights.checkpoint import CheckpointHeader
from puna.weights.config_json import config_to_json
from puna.weights.dense import DenseTensors
from puna.weights.folder import special_ids, write_settings, write_shards
from puna.weights.gguf import BLOCK_TYPES
from puna.weights.gguf_config import ROPE_DIVISORS, gguf_metadata_of, rope_divisors
from puna.weights.gguf_writer import write_gguf
from puna.weights.meta import PARAMS_FILE, meta_params
from puna.weights.names import rotated_heads
from puna.weights.pth_writer import write_pth
from puna.weights.stored import interleave
from puna.weights.tensor_header import BLOCKS
from puna.weights.tensors import DTYPES, TensorSpec, as_bytes, refuse_non_finite

__all__ = ["TABLES", "Export", "Output", "write_gguf_file", "write_hf_folder", "write_meta_folder"]

TABLES = ("embed_tokens.weight", "lm_head.weight")
_CONFIG_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Output:
    """A parameter on its way: where it comes from, what it is called, and the type that it gets."""

    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        """What a header says of it."""
        return self.name, self.dtype, self.shape

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        if self.dtype not in BLOCKS:
            return DTYPES[self.dtype].itemsize * math.prod(self.shape)
        block = BLOCK_TYPES[self.dtype]
        return math.prod(self.shape) // block.elements * block.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A checkpoint on its way into another format. generation: a generation_config.json to keep."""

    header: CheckpointHeader
    dense: DenseTensors
    outputs: tuple[Output, ...]
    tokenizer: Tokenizer | None
    generation: Mapping[str, Any] | None


def write_hf_folder(export: Export, target: Path) -> None:
    """A sealed Hugging Face folder of a plain Llama. Errors: UsageError: RoPE scaling that config.json cannot say."""
    stored, tokenizer = export.header.stored, export.tokenizer
    by_name = {output.name: output for output in export.outputs}
    bos_id, eos_ids = special_ids(stored, tokenizer)
    dtype = _CONFIG_TYPES[export.outputs[0].dtype]
    config = config_to_json(stored.model, bos_id=bos_id, eos_ids=eos_ids, dtype=dtype, pad_id=stored.pad_id)

    def read(name: str) -> Tensor:
        return _cast(target, by_name[name], export.dense[by_name[name].path])

    with staged_folder(target) as staged:
        write_shards(staged, [output.spec for output in export.outputs], read)
        write_settings(staged, config, tokenizer, export.generation)


def write_meta_folder(export: Export, target: Path) -> None:
    """A sealed Meta folder of one shard. Errors: UsageError: a model or a tokenizer that the format cannot say."""
    params = meta_params(export.header.config)
    with staged_folder(target) as staged:
        if export.tokenizer is not None:
            is_31 = isinstance(export.header.config.rope_scaling, Llama3Scaling)
            export.tokenizer.save_model_file(staged / "tokenizer.model", is_31=is_31)
        write_json(staged / PARAMS_FILE, params)
        specs = [output.spec for output in export.outputs]
        write_pth(staged / "consolidated.00.pth", specs, _encoded(export, target))


def write_gguf_file(export: Export, target: Path) -> None:
    """A GGUF file that llama.cpp loads. Errors: UsageError: a model or a tokenizer that the format cannot say."""
    config = export.header.config
    matrices = [output.dtype for output in export.outputs if len(output.shape) > 1 and output.path not in TABLES]
    file_type = BLOCK_TYPES[max(sorted(set(matrices)), key=matrices.count)].file_type
    metadata = gguf_metadata_of(config, name=target.stem, file_type=file_type)
    metadata |= _vocabulary(export)
    specs, chunks = [output.spec for output in export.outputs], _encoded(export, target)
    divisors = rope_divisors(config)
    if divisors is not None:
        specs = [(ROPE_DIVISORS, "F32", (len(divisors),)), *specs]
        chunks = itertools.chain([memoryview(struct.pack(f"<{len(divisors)}f", *divisors))], chunks)
    with staged_file(target) as staged:
        write_gguf(staged, metadata, specs, chunks)


def _vocabulary(export: Export) -> dict[str, Any]:
    """The tokenizer's keys; where it names no BOS or EOS, config.json's own."""
    stored = export.header.stored
    known = {"bos": stored.bos_id, "eos": next(iter(stored.eos_ids), None)}
    keys = {f"tokenizer.ggml.{role}_token_id": index for role, index in known.items() if index is not None}
    if export.tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab", **keys}
    return keys | gguf_metadata(export.tokenizer, stored.model.vocab_size)


def _encoded(export: Export, target: Path) -> Iterator[memoryview]:
    """The bytes of each tensor in Meta's and GGUF's layout. Blocks that keep their type are copied, code for code."""
    for output in export.outputs:
        codes = export.dense.codes(output.path) if output.dtype in BLOCKS else None
        if codes is not None and export.dense.dtypes[output.path] == output.dtype:
            yield as_bytes(codes)
            continue
        weight, heads = export.dense[output.path], rotated_heads(export.header.config, output.path)
        laid_out = weight if heads is None else interleave(weight, heads)
        if output.dtype in BLOCKS:
            yield as_bytes(quantize_blocks(output.dtype, laid_out))
        else:
            yield as_bytes(_cast(target, output, laid_out))


def _cast(target: Path, output: Output, weight: Tensor) -> Tensor:
    cast = weight.to(DTYPES[output.dtype])
    if cast.dtype != weight.dtype:
        refuse_non_finite(target, output.name, cast)
    return cast
