"""A disk that fills up or fails: the last good checkpoint stays, it is said, and nothing stray is left."""

import os
from pathlib import Path
from typing import Any

import pytest

from puna.files import LineLog
from tests.jobs.test_killed import facts, forks, recipe, saved, wholes

__all__ = ["forks", "recipe", "wholes"]

IS_NIGHTLY = os.environ.get("PUNA_COUNTS") == "nightly"
SHARES = range(0, 100, 3) if IS_NIGHTLY else (0, 1, 30, 60, 99)  # of what a checkpoint needs
FAILURES = range(1, 61) if IS_NIGHTLY else (1, 9, 17, 25)


def strays(out: Path) -> list[str]:
    return [path.name for path in out.rglob("*") if ".tmp-" in path.name or path.suffix == ".puna-old"]


@pytest.mark.parametrize("percent", SHARES)
def test_where_a_file_finds_no_room_the_step_before_stays(wholes, forks, tmp_path: Path, percent: int) -> None:
    whole, out = wholes["plain"], tmp_path / "run"
    assert forks(whole[0], out, point="in the update", at=5)["status"] == -9
    need = (out / "checkpoints" / "step_000003" / "state.safetensors").stat().st_size
    ended = forks(whole[0], out, file_bytes=max(4096, need * percent // 100))  # what it says has room
    assert ended["status"] == 1, ended
    assert ended["said"].startswith("DiskFull: "), ended
    assert saved(out) == 3
    assert strays(out) == []
    assert forks(whole[0], out)["status"] == 0
    assert {key: facts(out)[key] for key in ("state", "model")} == {key: whole[2][key] for key in ("state", "model")}


@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "EROFS", "EMFILE"])
@pytest.mark.parametrize("at", FAILURES)
def test_whichever_call_fails_nothing_saved_is_lost(wholes, forks, tmp_path: Path, at: int, code: str) -> None:
    whole, out = wholes["plain"], tmp_path / "run"
    assert forks(whole[0], out, point="in the update", at=5)["status"] == -9
    ended = forks(whole[0], out, fail=at, code=code)
    assert ended["status"] in (0, 1), ended
    assert saved(out) >= 3
    assert "Traceback" not in ended["said"]
    if ended["status"]:
        assert ended["said"].startswith("OSError: " if code == "EMFILE" else "DiskFull: "), ended
    assert forks(whole[0], out)["status"] == 0
    assert strays(out) == []
    result = facts(out)
    assert (result["state"], result["model"]) == (whole[2]["state"], whole[2]["model"])


def test_lines_that_find_no_room_wait_and_keep_their_order(tmp_path: Path) -> None:
    class Full:
        """Takes 5 bytes, then none, then everything."""

        def __init__(self, file: Any) -> None:
            self.file, self.turns = file, 0

        def write(self, data: bytes) -> int:
            self.turns += 1
            if self.turns == 2:
                raise OSError(28, "No space left on device")
            return int(self.file.write(bytes(data[: 5 if self.turns == 1 else None])))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    log = LineLog(tmp_path / "log")
    log._file = Full(log._file)
    log.append({"n": 1})
    assert (tmp_path / "log").read_text() == '{"n":'
    log.append({"n": 2})
    assert (tmp_path / "log").read_text() == '{"n": 1}\n{"n": 2}\n'
    assert log.sync() == 18
    log.close()
