"""`puna weights convert`: a checkpoint of any format, with its tokenizer and settings, into another one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puna.errors import UsageError, unknown_name
from puna.files import MANIFEST
from puna.jobs.load import find_base, find_model, is_adapter, load_adapter_for
from puna.jobs.peak import PeakMemory
from puna.jobs.run_folder import check_replaceable
from puna.weights.checkpoint import CheckpointHeader
from puna.weights.conversion import DTYPE_CHOICES, Target, convert_checkpoint
from puna.weights.folder import GENERATION_FILE
from puna.weights.headers import read_header
from puna.weights.loading import verify_seal
from puna.weights.meta import MetaSettings
from puna.weights.strict_json import read_object
from puna.weights.vocabulary import tokenizer_of

__all__ = ["ConvertResult", "convert"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult:
    """What `puna weights convert --json` prints; `notices` says what was decided on the way."""

    format: str
    bytes: int
    tensors: int
    peak_bytes: int
    path: str
    notices: tuple[str, ...]


def convert(
    source: str | Path,
    target: str | Path,
    to: Target,
    *,
    dtype: str | None = None,
    adapter: str | Path | None = None,
    meta: MetaSettings | None = None,
) -> ConvertResult:
    """Write the checkpoint at `source` as an hf or meta folder, or as the file of a GGUF, at `target`.

    Args:   dtype: f32, f16, bf16, and for gguf q8_0 or q4_0; None keeps each tensor's. adapter: folded in, in float32.
    Errors: UsageError: what the format cannot say. FormatError, CheckpointMismatch, DiskFull.
    """
    if dtype is not None and dtype not in DTYPE_CHOICES:
        raise unknown_name("dtype", dtype, DTYPE_CHOICES)
    if adapter is None and is_adapter(Path(source)):
        source, adapter = find_base(source), source
    place, out = find_model(source), Path(target)
    _check_target(place, out, to)
    peak = PeakMemory(torch.device("cpu"))
    header = read_header(place, meta)
    (meta or MetaSettings()).check_used(header.format)
    if not header.tensors:
        raise UsageError(f"{source} has no weights", "name a checkpoint with weights")
    verify_seal(header)
    converted = convert_checkpoint(
        header,
        out,
        to,
        dtype=None if dtype is None else DTYPE_CHOICES[dtype],
        adapter=None if adapter is None else load_adapter_for(header, Path(adapter)),
        tokenizer=tokenizer_of(header),
        generation=_generation(header),
    )
    return ConvertResult(
        format=to,
        bytes=converted.bytes,
        tensors=converted.tensors,
        peak_bytes=peak.growth_bytes(),
        path=str(out),
        notices=(*header.stored.notices, *converted.notices),
    )


def _check_target(source: Path, out: Path, to: Target) -> None:
    """Errors: UsageError: a target that holds the source, is of the wrong kind, or holds something that is not ours."""
    if to == "gguf" and (out.suffix != ".gguf" or out.is_dir()):
        named = out.resolve()
        raise UsageError(f"{out}: expected a file that ends in .gguf", f"name {named.with_name(f'{named.stem}.gguf')}")
    here, there = source.resolve(), out.resolve()
    if there == here or there in here.parents or here in there.parents:
        hint = "nothing is converted in place: name a target beside it"
        raise UsageError(f"{out} is the source, holds it or lies in it", hint)
    for parent in there.parents:
        if (parent / MANIFEST).exists():
            raise UsageError(f"{out} lies in {parent}, which is sealed", "name a target outside of it")
    if to != "gguf":
        check_replaceable(out)


def _generation(header: CheckpointHeader) -> Mapping[str, Any] | None:
    """The settings of generation beside a Hugging Face checkpoint, if there are any."""
    file = header.folder / GENERATION_FILE
    return read_object(file).values if header.format == "hf" and file.is_file() else None
