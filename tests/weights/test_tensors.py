"""One safetensors file: tensors come back bit-equal, and what is not finite does not come back."""

import resource
import signal

import pytest
import torch
from torch import nn

from puna.errors import DiskFull, FormatError
from puna.files import staged_file
from puna.weights.tensors import read_tensors, write_tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8])
def test_tensors_come_back_bit_equal(tmp_path, dtype):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).mul(50).to(dtype)
    tensors = {"plain": x, "transposed": x.T, "part": x[:, 1:3], "parameter": nn.Parameter(x.float())}
    write_tensors(tmp_path / "x.safetensors", tensors)
    found = dict(read_tensors(tmp_path / "x.safetensors", dict.fromkeys(tensors)))
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_only_named_tensors_are_read_and_converted(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.ones(2), "b": torch.ones(2)})
    ((name, tensor),) = read_tensors(tmp_path / "x", {"b": torch.bfloat16})
    assert (name, tensor.dtype) == ("b", torch.bfloat16)


@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), None), (float("inf"), None), (-float("inf"), None), (1e5, torch.float16)]
)
def test_what_is_not_finite_is_refused_by_name(tmp_path, value, dtype):
    write_tensors(tmp_path / "x", {"bad": torch.tensor([1.0, value, 2.0])})
    with pytest.raises(FormatError, match="bad: expected finite"):
        list(read_tensors(tmp_path / "x", {"bad": dtype}))


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"none")
    for path in (tmp_path / "x", tmp_path / "absent"):
        with pytest.raises(FormatError):
            list(read_tensors(path, {"a": None}))


def test_a_full_disk_is_said(tmp_path):
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(DiskFull), staged_file(tmp_path / "x") as staged:
            write_tensors(staged, {"a": torch.zeros(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
