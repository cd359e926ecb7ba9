"""From any format to any other, one tensor at a time: memory holds one tensor, whatever the model's size.

Factors are multiplied out, codes dequantised and an adapter folded in, in float32; then each tensor takes the type that
was asked for, or keeps its own. What a format cannot say is refused before anything is written. Format: docs/formats.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from puna.errors import DiskFull, UsageError
from puna.files import free_bytes
from puna.model.linears.adapter import Adapter
from puna.tokens.tokenizer import Tokenizer
from puna.weights.checkpoint import CheckpointHeader
from puna.weights.dense import DenseTensors
from puna.weights.export import TABLES, Export, Output, write_gguf_file, write_hf_folder, write_meta_folder
from puna.weights.gguf import BLOCK_TYPES
from puna.weights.meta import meta_unsaid
from puna.weights.names import name_in
from puna.weights.tensor_header import BLOCKS

__all__ = ["DTYPE_CHOICES", "Converted", "Target", "convert_checkpoint"]

Target = Literal["hf", "gguf", "meta"]
DTYPE_CHOICES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_ID_KEYS = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
_WRITERS = {"hf": write_hf_folder, "meta": write_meta_folder, "gguf": write_gguf_file}


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What was written, and what was decided on the way."""

    bytes: int
    tensors: int
    notices: tuple[str, ...]


def convert_checkpoint(
    header: CheckpointHeader,
    target: Path,
    to: Target,
    *,
    dtype: str | None = None,
    adapter: Adapter | None = None,
    tokenizer: Tokenizer | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Converted:
    """Write a checkpoint in another format, or the same one, at `target`: a folder, or the file of a GGUF.

    Args:   dtype: of DTYPE_CHOICES' values; None keeps each tensor's. generation: settings to keep in an hf folder.
    Errors: UsageError: what the format cannot say. DiskFull: before anything is written, where the space is short.
            FormatError: NaN or infinity, also after rounding. CheckpointMismatch: an adapter of another shape.
    """
    unsaid = header.config.variants if to == "hf" else header.config.exchanged
    if unsaid:
        raise UsageError(
            f"{header.path}: {' and '.join(unsaid)}: {to} cannot say that",
            "other programs would compute a plain Llama; only a plain one is converted",
        )
    dense = DenseTensors(header, adapter)
    outputs = [
        Output(path, name_in(to, path), _choose(to, path, shape, dense, dtype), shape)
        for path, shape in dense.shapes.items()
    ]
    if to == "meta" and header.config.tied_embeddings:  # Meta's own code reads a head of its own
        outputs.append(replace(outputs[0], name=name_in(to, "lm_head.weight")))
    size = sum(output.bytes for output in outputs)
    if free_bytes(target) < size:
        raise DiskFull(
            f"{target}: {size:,} bytes are needed, {free_bytes(target):,} are free",
            "free some space, or name another disk",
        )
    export = Export(header=header, dense=dense, outputs=tuple(outputs), tokenizer=tokenizer, generation=generation)
    _WRITERS[to](export, target)
    return Converted(bytes=size, tensors=len(outputs), notices=(*_lost(export, to), *_notices(export)))


def _choose(to: Target, path: str, shape: tuple[int, ...], dense: DenseTensors, dtype: str | None) -> str:
    """The type that a tensor gets. Errors: UsageError for one that the format does not have."""
    wanted = dtype or dense.dtypes[path]
    if to != "gguf":
        if dtype in BLOCKS:
            raise UsageError(f"{to} has no type {dtype}", "block types are GGUF's: --to gguf")
        return "F32" if wanted in BLOCKS else wanted
    if len(shape) == 1 or wanted == "F64":
        return "F32"
    if dtype is None and dense.codes(path) is not None:
        return wanted
    if wanted in BLOCKS - set(DTYPE_CHOICES.values()):
        raise UsageError(f"{path}: {wanted} is read, not written", "name a type: --dtype q8_0, f16, bf16 or f32")
    if wanted == "Q4_0" and path in TABLES:
        wanted = "Q8_0"
    return "F16" if shape[-1] % BLOCK_TYPES[wanted].elements else wanted


def _lost(export: Export, to: Target) -> Iterator[str]:
    """What the format has no place for, beside what it is refused for."""
    if to == "meta":
        for unsaid in meta_unsaid(export.header.config):
            yield f"Meta's format does not store {unsaid}"
        if export.tokenizer is not None and export.tokenizer.chat_template is not None:
            yield "Meta's format has no chat template: it was left out"
    if to != "hf" and (ends := _lost_ends(export, to)):
        yield f"{to} does not store more than one end beside the tokenizer's own: ids {ends} were left out"
    if to != "hf" and export.generation is not None and export.generation.keys() - _ID_KEYS:
        lost = ", ".join(sorted(export.generation.keys() - _ID_KEYS))
        yield f"{to} does not store settings of generation: {lost} were left out"


def _lost_ends(export: Export, to: Target) -> list[int]:
    """The ends that config.json and generation_config.json name, and a reader of the new file will not find."""
    stored, tokenizer = export.header.stored.eos_ids, export.tokenizer
    asked = (export.generation or {}).get("eos_token_id")
    named = [*stored, *(end for end in (asked if isinstance(asked, list) else [asked]) if type(end) is int)]
    kept = set() if tokenizer is None else set(tokenizer.eos_ids)
    if to == "gguf" and (tokenizer is None or tokenizer.named_id("eos_token") is None):
        kept |= set(stored[:1])
    return [end for end in dict.fromkeys(named) if end not in kept]


def _notices(export: Export) -> Iterator[str]:
    """What a person should know of the types that were chosen, and of what was missing."""
    changes: dict[tuple[str, str], list[str]] = {}
    for output in export.outputs:
        stored = export.dense.dtypes[output.path]
        if stored != output.dtype:
            changes.setdefault((stored, output.dtype), []).append(output.path)
    for (old, new), paths in changes.items():
        some = f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else paths[0]
        yield f"{old} -> {new}: {some}"
    if export.header.stored.embedding_rank is not None and export.header.config.tied_embeddings:
        yield "the head stays tied to a table with its mean: all logits of a position move alike, no prediction changes"
    if export.tokenizer is None:
        yield "no tokenizer was found, so none was written"
