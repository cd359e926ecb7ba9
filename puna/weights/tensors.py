"""Tensors to and from one safetensors file. Reading maps the file and copies one tensor at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from puna.errors import DiskFull, FormatError
from puna.files import free_bytes

__all__ = ["read_tensors", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: tuple[str, str] = ("format", "pt")) -> None:
    """Write a file in a staged folder, from copies: the library refuses views and tensors that share memory.

    Args:   metadata: one key and its text; of several the library would shuffle the order from run to run.
    Errors: DiskFull.
    """
    packed = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    try:
        save_file(packed, path, metadata=dict([metadata]))
    except SafetensorError as error:  # it hides the system's error number; packed tensors can only fail on the disk
        raise DiskFull(
            f"{path}: {error}; {free_bytes(path):,} bytes are free",
            "free some space or choose another folder; what was saved before is untouched",
        ) from None


def read_tensors(
    path: Path, dtypes: Mapping[str, torch.dtype | None], device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Copies of those tensors of a file that `dtypes` names, converted to the type it gives (None: as they are).

    Errors: FormatError: NaN or infinity, after the conversion too; a file that cannot be mapped.
    """
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (an open file is no mapping)
                if name in dtypes:
                    stored = file.get_tensor(name)
                    tensor = stored.to(device, dtypes[name] or stored.dtype, copy=True)
                    _refuse_non_finite(path, name, tensor)
                    yield name, tensor
    except (SafetensorError, OSError) as error:
        raise FormatError(path, "file", "safetensors that can be mapped", error) from None


def _refuse_non_finite(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not all(torch.isfinite(edge) for edge in tensor.aminmax()):
        raise FormatError(path, name, f"finite numbers in {tensor.dtype}", "NaN or infinity")
