"""Where a .pth file's tensors stand, and the file that we write: equal to torch.load's, bit for bit."""

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import pytest
import torch
from torch import Tensor

from puna.errors import FormatError
from puna.weights.pth import open_pth, place_tensors, read_pth_headers
from puna.weights.pth_worker import list_tensors
from puna.weights.pth_writer import write_pth
from puna.weights.tensor_header import TensorHeader
from puna.weights.tensors import DTYPES, as_bytes, map_tensor, spec_of

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def read_here(path: Path) -> tuple[TensorHeader, ...]:
    """`read_pth_headers` of one file, without a child."""
    return place_tensors(open_pth(path), list_tensors(str(path)))


def same_bits(first: Tensor, second: Tensor) -> bool:
    return (
        first.shape == second.shape
        and first.dtype == second.dtype
        and bytes(as_bytes(first)) == bytes(as_bytes(second))
    )


def check(path: Path, headers: tuple[TensorHeader, ...]) -> None:
    """Every tensor that torch.load finds is found at the stated place."""
    loaded = torch.load(path, weights_only=True)
    assert [header.name for header in headers] == list(loaded)
    for header in headers:
        assert header.file == path.name
        assert header.bytes == loaded[header.name].nbytes
        assert same_bits(map_tensor(path.parent, header), loaded[header.name])


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Every type, with an empty one, a scalar, a vector and odd sizes."""
    torch.manual_seed(0)
    made = {name: torch.randint(0, 2 if name == "BOOL" else 100, (3, 5)).to(dtype) for name, dtype in DTYPES.items()}
    return made | {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 4), "odd.weight": torch.randn(7, 1, 3)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "consolidated.00.pth"


def test_every_type_stands_where_the_child_says(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path)
    other = path.with_name("consolidated.01.pth")
    torch.save({name: tensors[name] for name in ("F32", "BF16")}, other)
    first, second = read_pth_headers([path, other])
    check(path, first)
    check(other, second)
    assert first == read_here(path)


def test_tensors_may_share_a_storage(path: Path) -> None:
    whole = torch.arange(24.0).view(6, 4)
    torch.save({"whole": whole, "rows": whole[2:4], "again": whole, "flat": whole[1]}, path)
    headers = read_here(path)
    check(path, headers)
    assert headers[1].offset == headers[0].offset + 2 * 4 * 4


@pytest.mark.parametrize("kind", ["parameters", "state_dict", "old"])
def test_other_plain_forms_are_read(path: Path, kind: str) -> None:
    layer = torch.nn.Linear(3, 5)
    value = dict(layer.named_parameters()) if kind == "parameters" else layer.state_dict()
    torch.save(value, path)
    if kind == "old":  # before PyTorch 2.7 storages had to be looked up
        repack(path, leave=(".format_version", ".storage_alignment", "byteorder"))
    check(path, read_here(path))


def repack(path: Path, leave: tuple[str, ...]) -> None:
    with ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if not name.endswith(leave)}
    with ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_a_repacked_file_is_refused_where_torch_would_read_at_wrong_places(
    path: Path, tensors: dict[str, Tensor]
) -> None:
    torch.save(tensors, path)
    repack(path, leave=())
    with pytest.raises(FormatError, match="bytes within one data/N"):
        read_here(path)


@pytest.mark.parametrize("view", [lambda x: x.T, lambda x: x[:, ::2], lambda x: x[:, :2], lambda x: x[0].expand(3, 4)])
def test_what_is_not_contiguous_is_refused_by_name(path: Path, view) -> None:
    torch.save({"odd": view(torch.arange(12.0).view(3, 4))}, path)
    with pytest.raises(FormatError, match="odd: expected a contiguous tensor"):
        read_here(path)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"model": {"a": torch.ones(1)}}, "model: expected a flat dict of dense tensors, got dict under str"),
        ({"step": 3, "a": torch.ones(1)}, "step: expected a flat dict of dense tensors, got int under str"),
        ([torch.ones(1)], "got list"),
        (torch.ones(1), "got Tensor"),
        ({1: torch.ones(1)}, "1: expected a flat dict of dense tensors, got Tensor under int"),
        ({"a": torch.ones(2, 2).to_sparse()}, "a: expected a flat dict of dense tensors"),
        ({"a": torch.ones(2).to(torch.complex64)}, "a: expected one of F64"),
        ({"a": torch.complex(torch.ones(2), torch.ones(2)).conj().imag}, "a: expected a flat dict of dense"),
        ({"": torch.ones(1)}, "printable names"),
        ({"a\33[2J": torch.ones(1)}, "printable names"),
        ({"a" * 513: torch.ones(1)}, "printable names"),
    ],
)
def test_what_is_no_flat_dict_of_tensors_is_refused_by_key(path: Path, value: object, named: str) -> None:
    torch.save(value, path)
    with pytest.raises(FormatError) as error:
        read_here(path)
    assert named in error.value.message
    assert error.value.message.isprintable()


@pytest.mark.parametrize(
    "answer",
    [
        None, {}, {"key": 1, "got": "x"}, [[]], [["a", "F32", [2, 3], [3, 1], [0, 24], 0]], "text", [None],
    ],
)  # fmt: skip
def test_what_a_child_says_is_not_believed(path: Path, answer: object) -> None:
    torch.save({"a": torch.ones(2, 3)}, path)
    with pytest.raises(FormatError):
        place_tensors(open_pth(path), answer)


@pytest.mark.parametrize(
    ("item", "lie"),
    [(0, 5), (0, "\0"), (1, "F31"), (1, None), (1, "F64"), (2, [2, 4]), (2, [-2, -3]), (2, [2**62, 3]), (2, [2.0, 3]),
     (2, [True, 6]), (3, [1, 2]), (3, [3]), (4, [0, 24]), (4, []), (5, -1), (5, 2**64), (5, None), (5, 0), (5, 1 << 40)],
)  # fmt: skip
def test_each_part_of_an_answer_is_checked(path: Path, item: int, lie: object) -> None:
    torch.save({"a": torch.ones(2, 3)}, path)
    archive, (true,) = open_pth(path), list_tensors(str(path))
    assert place_tensors(archive, [true])[0].shape == (2, 3)
    with pytest.raises(FormatError):
        place_tensors(archive, [[*true[:item], lie, *true[item + 1 :]]])
    with pytest.raises(FormatError, match="each name once"):
        place_tensors(archive, [true, true])


def test_a_sixteen_gigabyte_file_opens_in_seconds_and_no_memory(path: Path) -> None:
    with torch.serialization.skip_data():
        rows = {f"layers.{n}.weight": torch.empty(4096, 16384, dtype=torch.bfloat16, device="meta") for n in range(120)}
        torch.save({name: torch.empty_like(row, device="cpu") for name, row in rows.items()}, path)
    assert path.stat().st_size > 16e9
    started = time.monotonic()
    (headers,) = read_pth_headers([path])
    assert time.monotonic() - started < 5
    assert len(headers) == 120
    assert headers[-1].offset + headers[-1].bytes <= path.stat().st_size


def test_opening_loads_no_torch_here(path: Path) -> None:
    torch.save({"a": torch.ones(1)}, path)
    code = (
        "import sys; from pathlib import Path; from puna.weights.pth import read_pth_headers as read;"
        "print(len(read([Path(sys.argv[1])])[0]), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "False"]


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    write_pth(path, [spec_of(*item) for item in tensors.items()], (as_bytes(tensor) for tensor in tensors.values()))


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_loads_what_we_write(path: Path, tensors: dict[str, Tensor], mapped: bool) -> None:
    write(path, tensors)
    loaded = torch.load(path, weights_only=True, mmap=mapped)
    assert type(loaded) is dict
    assert list(loaded) == list(tensors)
    assert all(same_bits(loaded[name], tensor) for name, tensor in tensors.items())


def test_we_read_what_we_write_and_its_storages_are_aligned(path: Path, tensors: dict[str, Tensor]) -> None:
    write(path, tensors)
    headers = read_here(path)
    check(path, headers)
    assert [header.offset % 64 for header in headers] == [0] * len(tensors)


@pytest.mark.parametrize("dtype", FLOATS)
def test_bits_that_are_no_number_survive(path: Path, dtype: torch.dtype) -> None:
    bits = torch.randint(0, 256, (64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).view(dtype)
    write(path, {"bits": bits})
    assert same_bits(torch.load(path, weights_only=True)["bits"], bits)
    assert same_bits(map_tensor(path.parent, read_here(path)[0]), bits)


def test_writing_twice_gives_the_same_bytes(path: Path, tensors: dict[str, Tensor]) -> None:
    write(path, tensors)
    other = path.with_name("again.pth")
    write(other, tensors)
    assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("chunks", [[b"\0" * 11], [b"\0" * 13], [], [b"\0" * 12] * 2])
def test_other_bytes_than_announced_are_our_bug(path: Path, chunks: list[bytes]) -> None:
    with pytest.raises(ValueError):
        write_pth(path, [("a", "F32", (3,))], chunks)


def test_writing_holds_one_tensor_at_a_time(path: Path) -> None:
    size, specs = 4 << 20, [(str(number), "U8", (4 << 20,)) for number in range(6)]
    tracemalloc.start()
    write_pth(path, specs, (memoryview(bytearray(size)) for _ in specs))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size < peak < 1.5 * size


def test_an_entry_beyond_four_gigabytes_is_found(path: Path) -> None:
    """A sparse file, whose zip64 records are written by zipfile and read by us and by torch."""
    size = 5 << 30
    write_pth(path, [("first", "U8", (8,)), ("last", "U8", (8,))], [b"12345678", b"abcdefgh"])
    stretch(path, size)
    headers = read_here(path)
    assert headers[1].offset > size
    assert bytes(as_bytes(map_tensor(path.parent, headers[1]))) == b"abcdefgh"


def stretch(path: Path, size: int) -> None:
    """Move the last storage and the directory `size` bytes on."""
    with ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with path.open("wb") as file, ZipFile(file, "w") as archive:
        for name, data in entries:
            if name.endswith("data/1"):
                file.seek(size)
                archive.start_dir = size
            archive.writestr(ZipInfo(name), data)
