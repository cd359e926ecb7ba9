"""The GGUF container: what gguf 0.19 writes we read, what we write it reads, and writing again gives the same bytes."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from puna.errors import FormatError, UsageError
from puna.weights.gguf import BLOCK_TYPES, read_gguf
from puna.weights.gguf_writer import write_gguf
from puna.weights.tensors import as_bytes

METADATA = {
    "general.architecture": "llama",
    "text": "多字节 🦙",
    "empty": "",
    "yes": True,
    "no": False,
    "count": 7,
    "large": 2**40,
    "ratio": 0.5,
    "names": ["a", "", "猫"],
    "kinds": [1, -2, 3],
    "scores": [0.25, -1e9],
    "flags": [True, False],
    "nothing": [],
}
TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.ones(5, dtype=torch.float16),
    "c.weight": torch.arange(64, dtype=torch.bfloat16).view(1, 2, 32),
}
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@pytest.fixture
def ours(tmp_path):
    path = tmp_path / "ours.gguf"
    specs = [(name, TYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items()]
    codes = bytes(range(34)) * 6
    write_gguf(
        path,
        METADATA,
        [*specs, ("q", "Q8_0", (3, 64))],
        [*map(as_bytes, TENSORS.values()), memoryview(codes)],
    )
    return path


def stored(path, header):
    return path.read_bytes()[header.offset : header.offset + header.bytes]


def test_what_was_written_is_read(ours):
    file = read_gguf(ours)
    assert file.metadata == METADATA
    assert [tensor.name for tensor in file.tensors] == [*TENSORS, "q"]
    for header in file.tensors[:-1]:
        assert header.shape == tuple(TENSORS[header.name].shape)
        assert stored(ours, header) == bytes(as_bytes(TENSORS[header.name]))
        assert header.offset % 32 == 0
    assert (file.tensors[-1].dtype, file.tensors[-1].bytes) == ("Q8_0", 204)


def test_the_reference_library_reads_ours(ours):
    reader = GGUFReader(ours)
    found = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert found == METADATA
    for tensor, expected in zip(reader.tensors, TENSORS.values(), strict=False):
        assert tuple(int(size) for size in tensor.shape)[::-1] == tuple(expected.shape)
        assert tensor.data.tobytes() == bytes(as_bytes(expected))


def test_reading_and_writing_again_gives_the_same_bytes(ours, tmp_path):
    file = read_gguf(ours)
    specs = [(header.name, header.dtype, header.shape) for header in file.tensors]
    write_gguf(tmp_path / "again.gguf", file.metadata, specs, [memoryview(stored(ours, h)) for h in file.tensors])
    assert (tmp_path / "again.gguf").read_bytes() == ours.read_bytes()


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_we_read_what_the_reference_library_writes(tmp_path, alignment):
    writer = GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_custom_alignment(alignment)
    values = {
        "u8": (200, GGUFValueType.UINT8), "i8": (-3, GGUFValueType.INT8), "u16": (65535, GGUFValueType.UINT16),
        "i16": (-300, GGUFValueType.INT16), "u32": (2**32 - 1, GGUFValueType.UINT32), "i32": (-5, GGUFValueType.INT32),
        "f32": (0.25, GGUFValueType.FLOAT32), "bool": (True, GGUFValueType.BOOL), "text": ("é", GGUFValueType.STRING),
        "u64": (2**63, GGUFValueType.UINT64), "i64": (-(2**40), GGUFValueType.INT64), "f64": (0.1, GGUFValueType.FLOAT64),
    }  # fmt: skip
    for key, (value, kind) in values.items():
        writer.add_key_value(key, value, kind)
    writer.add_array("list", [1, 2, 3])
    data = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    writer.add_tensor("x.weight", data)
    writer.add_tensor("h", data[0].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "theirs.gguf")
    assert {key: file.metadata[key] for key in values} == {key: value for key, (value, _) in values.items()}
    assert file.metadata["list"] == [1, 2, 3]
    x, h = file.tensors
    assert (x.name, x.dtype, x.shape, h.dtype, h.shape) == ("x.weight", "F32", (6, 64), "F16", (64,))
    assert stored(file.path, x) == data.tobytes()


def test_version_2_is_read_and_others_are_refused(ours):
    data = bytearray(ours.read_bytes())
    for version, is_read in ((2, True), (1, False), (4, False), (3 << 24, False)):
        data[4:8] = version.to_bytes(4, "little")
        ours.write_bytes(data)
        if is_read:
            assert read_gguf(ours).metadata == METADATA
        else:
            with pytest.raises(FormatError, match="version"):
                read_gguf(ours)


def test_the_table_of_types_is_the_reference_librarys():
    from gguf import GGML_QUANT_SIZES, LlamaFileType

    for name, block in BLOCK_TYPES.items():
        kind = GGMLQuantizationType[name]
        assert (kind.value, GGML_QUANT_SIZES[kind]) == (block.id, (block.elements, block.bytes))
        known = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_M", "Q6_K": "MOSTLY_Q6_K"}.get(name, f"MOSTLY_{name}")
        assert LlamaFileType[known].value == block.file_type


def test_a_type_that_is_not_read_is_named_with_its_tensor(tmp_path):
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    codes = np.zeros((4, 176), dtype=np.uint8)
    writer.add_tensor("blk.0.ffn_up.weight", codes, raw_dtype=GGMLQuantizationType.Q5_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=r"blk\.0\.ffn_up\.weight: expected one of F32.*Q6_K, got Q5_K"):
        read_gguf(tmp_path / "t.gguf")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, [1, "a"], 2**70, [2**70]])
def test_metadata_that_the_format_cannot_hold_is_refused(tmp_path, value):
    with pytest.raises(UsageError, match="key"):
        write_gguf(tmp_path / "x.gguf", {"key": value}, [], [])


def test_a_chunk_of_another_size_is_no_tensor(tmp_path):
    with pytest.raises(ValueError, match="16 bytes were announced, 12 arrived"):
        write_gguf(tmp_path / "x.gguf", {}, [("a", "F32", (4,))], [memoryview(bytes(12))])


def test_a_real_vocabulary_is_read(shared_data):
    file = read_gguf(shared_data / "tokenizers" / "vectors" / "ggml-vocab-llama-spm.gguf")
    assert file.tensors == ()
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 32_000
