"""A checkpoint of any format -> a Llama, each tensor once; and what proves that a checkpoint is the one that was meant.

Every tensor is scanned for NaN and infinity when it is read into a model. Format: docs/formats.md.
"""

import hashlib
from pathlib import Path

import torch

from puna.files import MANIFEST, sha256_file, verify_folder
from puna.model.linears.int8 import Int8Linear
from puna.model.linears.kind import AnyLinear
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.positions import rope_frequencies
from puna.model.surgery import get_linear, replace_linear
from puna.weights.checkpoint import CheckpointHeader
from puna.weights.headers import read_header
from puna.weights.names import Int8Entry, LinearEntry, LowRankEntry
from puna.weights.stored import StoredTensors
from puna.weights.tensors import refuse_non_finite

__all__ = ["load_llama", "verify_seal", "weights_sha256"]


def load_llama(
    checkpoint: Path | CheckpointHeader, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Llama:
    """Read a model, each Linear of the kind it was stored as.

    Args:   checkpoint: where it is, or its header where that was read already. dtype: the type of weights and factors,
            whatever the file's; int8 codes and their scales keep theirs.
    Raises: FormatError: anything that formats.md refuses, NaN and infinity included.
            CheckpointMismatch: a folder we wrote was changed since.
    """
    header = read_header(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    verify_seal(header)
    model, state = _unfilled(header), {}
    stored = StoredTensors(header)
    for expected in header.expected():
        tensor = stored[expected]
        state[expected.path] = tensor.to(device, dtype if expected.is_converted else tensor.dtype, copy=True)
        refuse_non_finite(header.path, expected.name, state[expected.path])
    if header.config.tied_embeddings:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if header.config.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    model.frequencies_P = rope_frequencies(header.config).to(device)
    return model


def verify_seal(header: CheckpointHeader) -> None:
    """Check a folder of ours against its manifest. Errors: CheckpointMismatch: it was changed since it was written."""
    if header.path.is_dir() and (header.path / MANIFEST).exists():
        verify_folder(header.path)


def weights_sha256(checkpoint: Path | CheckpointHeader) -> str:
    """SHA-256 over the names and contents of the files that hold a checkpoint's tensors, in hexadecimal."""
    header = read_header(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    lines = "".join(f"{name} {sha256_file(header.folder / name)}\n" for name in header.files)
    return hashlib.sha256(lines.encode()).hexdigest()


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
