"""A container's memory is what its narrowest group leaves, in both versions of control groups."""

from pathlib import Path

import psutil
import pytest
import torch

from puna.jobs import container
from puna.jobs.container import container_room
from puna.jobs.machine import available_bytes

V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups of the test's own: `proc` is the table, `sys` the tree."""
    monkeypatch.setattr(container, "_TABLE", tmp_path / "proc")
    monkeypatch.setattr(container, "_ROOT", tmp_path / "sys")
    return tmp_path


def put(folder: Path, files: tuple[str, str], limit: str, used: int, statistics: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip((*files, "memory.stat"), (limit, str(used), statistics), strict=True):
        (folder / name).write_text(f"{text}\n")


def test_the_narrowest_group_counts_and_file_pages_are_given_back(groups: Path) -> None:
    (groups / "proc").write_text("0::/pod/box\n")
    put(groups / "sys" / "pod" / "box", V2, "max", 10)
    put(groups / "sys" / "pod", V2, "5000", 1000, "anon 1\ninactive_file 300\nfile 700")
    assert container_room() == 4300
    put(groups / "sys" / "pod" / "box", V2, "2000", 1900)
    assert container_room() == 100
    assert available_bytes(torch.device("cpu")) == 100


def test_the_older_version_has_files_of_its_own(groups: Path) -> None:
    (groups / "proc").write_text("5:cpu:/x\n4:memory:/box\n0::/\n")
    put(groups / "sys" / "memory" / "box", V1, "900", 400, "inactive_file 7\ntotal_inactive_file 50")
    assert container_room() == 550
    put(groups / "sys" / "memory" / "box", V1, "300", 400)
    assert container_room() == 0


def test_a_container_that_sees_its_own_group_as_the_root_is_limited_too(groups: Path) -> None:
    (groups / "proc").write_text("0::/../outside\n")
    put(groups / "sys", V2, "800", 200)
    assert container_room() == 600


@pytest.mark.parametrize("table", [None, "", "0::/\n", "4:memory:/gone\n"])
def test_without_a_limit_the_machine_is_what_there_is(groups: Path, table: str | None) -> None:
    if table is not None:
        (groups / "proc").write_text(table)
    assert container_room() is None
    assert available_bytes(torch.device("cpu")) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
