"""`puna weights convert`: a checkpoint of any format, with its tokenizer and settings, into another one."""

from dataclasses import dataclass
from pathlib import Path

import torch

from puna.errors import UsageError, unknown_name
from puna.files import MANIFEST
from puna.jobs.load import find_base, find_model, is_adapter, load_adapter_for, unproven
from puna.jobs.peak import PeakMemory
from puna.jobs.run_folder import check_replaceable
from puna.weights.conversion import DTYPE_CHOICES, Target, convert_checkpoint
from puna.weights.folder import generation_settings
from puna.weights.headers import read_header
from puna.weights.loading import verify_seal
from puna.weights.meta import MetaSettings
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
    folded = None if adapter is None else load_adapter_for(header, Path(adapter))
    converted = convert_checkpoint(
        header,
        out,
        to,
        dtype=None if dtype is None else DTYPE_CHOICES[dtype],
        adapter=folded,
        tokenizer=tokenizer_of(header),
        generation=generation_settings(header),
    )
    return ConvertResult(
        format=to,
        bytes=converted.bytes,
        tensors=converted.tensors,
        peak_bytes=peak.growth_bytes(),
        path=str(out),
        notices=(*header.stored.notices, *unproven(folded, adapter), *converted.notices),
    )


def _check_target(source: Path, out: Path, to: Target) -> None:
    """Errors: UsageError: a target that holds the source, is of the wrong kind, or holds something that is not ours."""
    if to == "gguf" and (out.suffix != ".gguf" or out.is_dir()):
        raise UsageError(f"{out}: expected a file that ends in .gguf, got a {_kind(out)}", f"name {_gguf_place(out)}")
    here, there = source.resolve(), out.resolve()
    if there == here or there in here.parents or here in there.parents:
        hint = "nothing is converted in place: name a target beside it"
        raise UsageError(f"{out} is the source, holds it or lies in it", hint)
    for parent in there.parents:
        if (parent / MANIFEST).exists():
            raise UsageError(f"{out} lies in {parent}, which is sealed", "name a target outside of it")
    if to != "gguf":
        check_replaceable(out)


def _kind(out: Path) -> str:
    return "folder" if out.is_dir() else f"name that ends in {out.suffix or 'nothing'}"


def _gguf_place(out: Path) -> Path:
    """Where the file could go: beside a folder, or in it where its name is taken or it has none."""
    named = out.resolve()
    place = named.with_name(f"{named.stem}.gguf") if named.name else named
    return place / "model.gguf" if place.is_dir() else place
