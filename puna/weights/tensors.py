"""Tensors to and from files: mapped, not copied, on the way in; one at a time on the way out.

A safetensors file is eight bytes of length, a JSON header, and the tensors' bytes in its order; ours are ordered as the
library orders them, widest type first and then by name. Source: the format's description, safetensors 0.8.
"""

import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from puna.errors import FormatError
from puna.weights.safetensors_file import read_tensor_headers
from puna.weights.tensor_header import BLOCKS, TensorHeader

__all__ = [
    "DTYPES",
    "DTYPE_NAMES",
    "TensorSpec",
    "as_bytes",
    "map_tensor",
    "read_tensors",
    "refuse_non_finite",
    "sorted_specs",
    "spec_bytes",
    "spec_of",
    "write_safetensors",
    "write_tensors",
]

_PT = MappingProxyType({"format": "pt"})

TensorSpec = tuple[str, str, tuple[int, ...]]  # name, type as a header has it, shape

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def map_tensor(folder: Path, header: TensorHeader) -> Tensor:
    """A stored tensor as the file holds it, mapped privately: writing to it would change neither the file nor others.

    Returns: its shape and type; of a block type the codes, uint8, one row of bytes for each row of numbers.
    Errors:  FormatError: a type without a tensor here, a file that cannot be mapped.
    """
    path = folder / header.file
    if header.dtype not in DTYPES and header.dtype not in BLOCKS:
        raise FormatError(path, header.name, f"one of {', '.join((*DTYPES, *sorted(BLOCKS)))}", header.dtype)
    dtype = DTYPES.get(header.dtype, torch.uint8)
    shape = header.shape if header.dtype in DTYPES else (*header.shape[:-1], -1)
    if header.bytes == 0:
        return torch.empty(shape, dtype=dtype)
    skipped = header.offset % mmap.ALLOCATIONGRANULARITY  # a mapping begins at a page
    try:
        with path.open("rb") as file:
            view = mmap.mmap(
                file.fileno(), header.bytes + skipped, access=mmap.ACCESS_COPY, offset=header.offset - skipped
            )
    except (OSError, ValueError) as error:
        raise FormatError(
            path, "file", f"{header.bytes:,} bytes at {header.offset:,} that can be mapped", error
        ) from None
    codes = torch.frombuffer(view, dtype=torch.uint8, offset=skipped)
    return (codes if skipped % dtype.itemsize == 0 else codes.clone()).view(dtype).view(shape)


def read_tensors(
    path: Path, dtypes: Mapping[str, torch.dtype | None], device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Copies of those tensors of a safetensors file that `dtypes` names, converted to the type it gives (None: as they are).

    Errors: FormatError: NaN or infinity, after the conversion too; a file that cannot be mapped.
    """
    for header in read_tensor_headers(path)[0]:
        if header.name in dtypes:
            stored = map_tensor(path.parent, header)
            tensor = stored.to(device, dtypes[header.name] or stored.dtype, copy=True)
            refuse_non_finite(path, header.name, tensor)
            yield header.name, tensor


def refuse_non_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Errors: FormatError naming the tensor where it holds NaN or infinity."""
    if tensor.is_floating_point() and tensor.numel() and not all(torch.isfinite(edge) for edge in tensor.aminmax()):
        raise FormatError(path, name, f"finite numbers in {tensor.dtype}", "NaN or infinity")


def write_tensors(staged: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = _PT) -> None:
    """Write a safetensors file in a staged place."""
    specs = sorted_specs(spec_of(name, tensor) for name, tensor in tensors.items())
    write_safetensors(staged, specs, (tensors[name] for name, _, _ in specs), metadata)


def write_safetensors(
    staged: Path, specs: Sequence[TensorSpec], tensors: Iterable[Tensor], metadata: Mapping[str, str] = _PT
) -> None:
    """Write a safetensors file as its tensors arrive, so that memory holds one of them.

    Args: specs: of all tensors, in the order of `sorted_specs`. tensors: in that order, of these types and shapes.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape in specs:
        end = position + spec_bytes((name, dtype, shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with staged.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec, tensor in zip(specs, tensors, strict=True):
            if spec_of(spec[0], tensor) != spec:
                raise ValueError(f"{spec} was announced, {spec_of(spec[0], tensor)} arrived")
            file.write(as_bytes(tensor))


def sorted_specs(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """The order of tensors in a safetensors file: widest type first, so that each is aligned, then by name."""
    return sorted(specs, key=lambda spec: (-DTYPES[spec[1]].itemsize, spec[0]))


def spec_of(name: str, tensor: Tensor) -> TensorSpec:
    """What a header says of a tensor."""
    return name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)


def spec_bytes(spec: TensorSpec) -> int:
    """The bytes of a tensor in a safetensors file."""
    return DTYPES[spec[1]].itemsize * math.prod(spec[2])


def as_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes, row-major; no copy where it is contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
