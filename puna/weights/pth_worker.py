"""The process that reads foreign .pth files: torch.load with weights_only, on the meta device, which holds no numbers.

Its limits are set by who starts it (pth.py). What it says is checked there, against the archive.
"""

import re
from typing import Any

import torch
from torch import Tensor

from puna.child import serve
from puna.weights.tensors import DTYPE_NAMES

__all__ = ["list_tensors"]

_REFUSAL = re.compile(r"(?:WeightsUnpickler error: \s*|(?=Trying to load ))(.+?)(?:\.\s|\n|$)")
_FIRST_SENTENCE = re.compile(r"(.+?)(?:\.\s|\n|$)")


def list_tensors(path: str) -> Any:
    """What a .pth file's dict holds.

    Returns: [name, type, shape, strides, [begin, end) of its storage in the file, its first byte in the file] of each
             tensor, or {key, got}: what is there in place of a flat dict of dense tensors.
    """
    try:
        value = torch.load(path, map_location="meta", weights_only=True)
        if not isinstance(value, dict):
            return {"key": "data.pkl", "got": type(value).__name__}
        for name, tensor in value.items():
            if not (isinstance(name, str) and isinstance(tensor, Tensor) and _is_dense(tensor)):
                return {"key": str(name), "got": f"{type(tensor).__name__} under {type(name).__name__}"}
        return [_place(name, tensor) for name, tensor in value.items()]
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (torch.load fails with whatever it meets: nine types were seen)
        return {"key": "data.pkl", "got": _reason(error)}


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_neg() or tensor.is_conj())


def _place(name: str, tensor: Tensor) -> list[Any]:
    storage = tensor.untyped_storage()
    begin = storage._checkpoint_offset  # where torch.load would have read it
    if begin is None:
        raise ValueError(f"{name} has no bytes in this file")
    first = begin + tensor.storage_offset() * tensor.element_size()
    dtype = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
    return [name, dtype, list(tensor.shape), list(tensor.stride()), [begin, begin + storage.nbytes()], first]


def _reason(error: Exception) -> str:
    """What torch.load says, without its advice to load unsafely."""
    said = str(error)
    found = _REFUSAL.search(said) or _FIRST_SENTENCE.search(said)
    return type(error).__name__ + (f": {found[1]}" if found else "")


if __name__ == "__main__":
    serve(list_tensors)
