"""A checkpoint of any format -> a Llama, each tensor once; and what proves that a checkpoint is the one that was meant.

Every tensor is scanned for NaN and infinity when it is read into a model. Format: docs/formats.md.
"""

import hashlib
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from puna.arch.modules import HEAD, LINEARS, linear_paths
from puna.errors import FormatError, UsageError
from puna.files import MANIFEST, sha256_file, verify_folder
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.blocks import BlockLinear
from puna.model.linears.kind import AnyLinear, dense_weight
from puna.model.linears.narrow import NarrowLinear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, replace_linear, replace_tables
from puna.weights.checkpoint import CheckpointHeader
from puna.weights.headers import read_header
from puna.weights.kinds import empty_linear
from puna.weights.names import ExpectedTensor, FusedEntry, entry_of_each
from puna.weights.stored import StoredTensors
from puna.weights.tensors import DTYPE_NAMES, refuse_non_finite

__all__ = ["load_llama", "verify_seal", "weights_sha256"]

_NARROW = ("BF16", "F16")


def load_llama(
    checkpoint: Path | CheckpointHeader,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: Callable[[Tensor], AnyLinear] | None = None,
    *,
    mapped: bool = False,
) -> Llama:
    """Read a model, each Linear of the kind it was stored as, or as `quantize` makes it.

    Args:   checkpoint: where it is, or its header where that was read already. dtype: the type of weights and factors,
            whatever the file's; int8 codes and their scales keep theirs.
            quantize: given each block Linear's dense weight on the device, in the file's type (float32 where it had to be
            formed), as soon as that is read; memory holds one of them beside what was made of the others.
            mapped: leave every matrix in its safetensors file, mapped: the system reads it when it is used and may forget
            it again. Writing to one would change a private copy and never the file. 16-bit matrices in a float32 model
            stay so: products widen them one at a time, the stream and the vectors are float32.
    Raises: FormatError: anything that formats.md refuses, NaN and infinity included; mapped, and a matrix would need a copy.
            CheckpointMismatch: a folder we wrote was changed since. UsageError: mapped beside `quantize` or off the CPU.
    """
    header = read_header(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    verify_seal(header)
    model, stored = _unfilled(header), StoredTensors(header)
    if mapped:
        _check_mapped(header, stored, torch.device(device), dtype, is_quantised=quantize is not None)
    shared = _SharedFactors(header)
    for path, parts in groupby(header.expected(), key=lambda expected: expected.module):
        is_quantised = quantize is not None and path.rpartition(".")[2] in LINEARS
        model.get_submodule(path).load_state_dict(
            _place(header, stored, parts, device, None if is_quantised else dtype, mapped=mapped) | shared.of(path),
            assign=True,
            strict=path != HEAD or not header.config.tied_embeddings,  # else of a tied one the bias alone
        )
        shared.keep(path, model)
        _check_scales(header, path, model)
        if quantize is not None and is_quantised:
            replace_linear(model, path, quantize(_weight(get_linear(model, path))))
    if header.config.tied_embeddings:
        replace_tables(model)
    if mapped:
        _multiply_wide(model, dtype)
    model.position.restore(device)
    return model.eval()


def verify_seal(header: CheckpointHeader) -> None:
    """Check a folder of ours against its manifest. Errors: CheckpointMismatch: it was changed since it was written."""
    if header.path.is_dir() and (header.path / MANIFEST).exists():
        verify_folder(header.path)


def weights_sha256(checkpoint: Path | CheckpointHeader) -> str:
    """SHA-256 over the names and contents of the files that hold a checkpoint's tensors, in hexadecimal."""
    header = read_header(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    lines = "".join(f"{name} {sha256_file(header.folder / name)}\n" for name in header.files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _place(
    header: CheckpointHeader,
    stored: StoredTensors,
    parts: Iterable[ExpectedTensor],
    device: torch.device | str,
    dtype: torch.dtype | None,
    *,
    mapped: bool = False,
) -> dict[str, Tensor]:
    """The tensors of one module by their names in it, copied into `dtype`; None: as stored, on a CPU still mapped.

    mapped: matrices are left as they are, vectors copied.
    """
    placed = {}
    for expected in parts:
        tensor = stored[expected]
        is_left = mapped and tensor.dim() > 1
        wanted = tensor.dtype if dtype is None or is_left or not expected.is_converted else dtype
        moved = tensor.to(device, wanted, copy=dtype is not None and not is_left)
        refuse_non_finite(header.path, expected.name, moved)
        placed[expected.path.removeprefix(f"{expected.module}.")] = moved
    return placed


def _check_scales(header: CheckpointHeader, path: str, model: Llama) -> None:
    """Errors: FormatError: a block of codes whose scale is NaN or infinity."""
    for linear in model.get_submodule(path).modules():
        if isinstance(linear, BlockLinear):
            refuse_non_finite(header.path, path, linear.scales())


def _check_mapped(
    header: CheckpointHeader, stored: StoredTensors, device: torch.device, dtype: torch.dtype, *, is_quantised: bool
) -> None:
    """Errors: UsageError, FormatError, as load_llama says."""
    header.config.require_llama(header.path)
    if is_quantised:
        raise UsageError("mapped: expected weights as they are stored, got a base to quantise", "choose one of the two")
    if device.type != "cpu":
        raise UsageError(f"mapped: expected the CPU, got {device}", "load on the CPU, then stream layers to the device")
    if header.format not in ("hf", "puna"):
        raise FormatError(
            header.path, "format", "a safetensors folder in Hugging Face's layout, to leave weights in it", header.format,
            "convert it first: puna weights convert --to hf",
        )  # fmt: skip
    in_parts = entry_of_each(header.stored.linears)
    for expected in header.expected():
        kind, wanted = stored.dtype(expected), DTYPE_NAMES[dtype]
        if len(expected.shape) < 2:
            continue
        is_widened = wanted == "F32" and kind in _NARROW and expected.module not in in_parts
        if expected.is_converted and kind != wanted and not is_widened:
            hint = f"load it in {kind}, or convert it first: puna weights convert --dtype"
            raise FormatError(header.path, expected.name, f"{wanted}, to leave it in the file", kind, hint)
        if not stored.is_aligned(expected):
            raise FormatError(
                header.path, expected.name, f"a place aligned for {kind}, to leave it in the file", "another place",
                "write the folder again: puna weights convert --to hf",
            )  # fmt: skip


def _multiply_wide(model: Llama, dtype: torch.dtype) -> None:
    """Let each dense Linear that is stored narrower than the stream widen its weight for its products."""
    for path in (*linear_paths(model.config), HEAD):
        linear = get_linear(model, path)
        if isinstance(linear, nn.Linear) and linear.weight.dtype != dtype:
            replace_linear(model, path, NarrowLinear(linear.weight))
    replace_tables(model)


def _unfilled(header: CheckpointHeader) -> Llama:
    """The model without storage, the right kind of Linear at every path."""
    rank = header.stored.embedding_rank
    with torch.device("meta"):
        model = Llama(header.config)
        if rank is not None:
            replace_tables(model, table=FactoredEmbedding.empty(header.config.vocab_size, header.config.dim, rank))
        for path, entry in entry_of_each(header.stored.linears).items():
            dense = get_linear(model, path)
            replace_linear(model, path, empty_linear(entry, dense.out_features, dense.in_features))
    return model


class _SharedFactors:
    """V of each fused group on its way from the member that stores it to the others, and no longer."""

    def __init__(self, header: CheckpointHeader) -> None:
        self._groups = {entry.paths[0]: entry.paths for entry in header.stored.linears if isinstance(entry, FusedEntry)}
        self._waiting: dict[str, dict[str, Tensor]] = {}

    def of(self, path: str) -> dict[str, Tensor]:
        """What a Linear still lacks beside its own tensors."""
        return self._waiting.pop(path, {})

    def keep(self, path: str, model: Llama) -> None:
        """Remember what the Linear that was just read shares."""
        if path in self._groups:
            factor = {
                name: part for name, part in _tensors(model.get_submodule(path)).items() if name.split(".")[0] == "V"
            }
            self._waiting |= dict.fromkeys(self._groups[path][1:], factor)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers themselves, not copies cut loose as a state_dict's are."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _weight(linear: AnyLinear) -> Tensor:
    """What is quantised: a dense weight in its own type, for a float32 copy of it would be as large again, else the formed."""
    return linear.weight if isinstance(linear, nn.Linear) else dense_weight(linear)
