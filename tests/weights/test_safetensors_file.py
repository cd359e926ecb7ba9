"""The bounded safetensors header: what the library wrote is read, and every structural lie is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from puna.errors import FormatError
from puna.weights.safetensors_file import read_tensor_headers

ONE = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
TWO = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def write(path, header, data_bytes=32, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + bytes(data_bytes))
    return path


def test_headers_equal_what_the_library_wrote(tmp_path):
    tensors = {
        "a": torch.zeros(3, 5, dtype=torch.bfloat16),
        "b": torch.zeros(7),
        "scalar": torch.tensor(1.0),
        "codes": torch.zeros(2, 2, dtype=torch.int8),
        "none": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    headers, metadata = read_tensor_headers(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"}
    assert {h.name: (h.shape, h.bytes) for h in headers} == {n: (tuple(t.shape), t.nbytes) for n, t in tensors.items()}
    assert {h.name: h.dtype for h in headers}["a"] == "BF16"


def test_a_true_header_is_read_in_the_order_of_its_bytes(tmp_path):
    headers, _ = read_tensor_headers(write(tmp_path / "x", {"two": TWO, "one": ONE}))
    assert [header.name for header in headers] == ["one", "two"]


@pytest.mark.parametrize(
    "header",
    [
        {"one": ONE},  # a remainder
        {"one": ONE, "two": {**TWO, "data_offsets": [16, 24]}},  # overlap
        {"one": ONE, "two": {**TWO, "data_offsets": [26, 34]}},  # hole, and outside
        {"one": ONE, "two": {**TWO, "shape": [3], "data_offsets": [26, 32]}},  # hole
        {"one": ONE, "two": {**TWO, "data_offsets": [32, 24]}},  # reversed
        {"one": ONE, "two": {**TWO, "data_offsets": [24]}},
        {"one": ONE, "two": {**TWO, "data_offsets": [24, "32"]}},
        {"one": ONE, "two": {**TWO, "data_offsets": [-8, 0]}},
        {"one": ONE, "two": {**TWO, "shape": [5]}},
        {"one": ONE, "two": {**TWO, "shape": [-4]}},
        {"one": ONE, "two": {**TWO, "shape": [4.0]}},
        {"one": ONE, "two": {**TWO, "shape": [True]}},
        {"one": ONE, "two": {**TWO, "shape": [2**62, 2**62]}},
        {"one": ONE, "two": {**TWO, "shape": [1] * 40}},
        {"one": ONE, "two": {**TWO, "dtype": "F12"}},
        {"one": ONE, "two": {**TWO, "dtype": ["F32"]}},
        {"one": ONE, "two": {**TWO, "extra": 1}},
        {"one": ONE, "two": [1]},
        {"one": ONE, "two": TWO, "__metadata__": {"a": 1}},
        {"one": ONE, "two": TWO, "__metadata__": []},
        b'{"one": {}, "one": {}}',
        b"[]",
        b"",
    ],
)
def test_every_structural_lie_is_refused(tmp_path, header):
    with pytest.raises(FormatError):
        read_tensor_headers(write(tmp_path / "x", header))


@pytest.mark.parametrize("length", [0, 1, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_false_header_length_is_refused(tmp_path, length):
    with pytest.raises(FormatError):
        read_tensor_headers(write(tmp_path / "x", {"one": ONE, "two": TWO}, length=length))


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    path = write(tmp_path / "x", {"one": ONE, "two": TWO})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError):
            read_tensor_headers(path)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FormatError, match="safetensors file, got nothing"):
            read_tensor_headers(path)
