"""The memory that a container may still take: the narrowest limit of the control groups that this process is in.

Linux, man 7 cgroups; version 2: memory.max, memory.current; version 1: memory.limit_in_bytes, memory.usage_in_bytes. Pages of
files that were not read lately (`inactive_file`) are counted as used, and given back when asked for.
"""

from pathlib import Path

__all__ = ["container_room"]

_TABLE, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def container_room() -> int | None:
    """Bytes that may still be taken; None where no group has a limit, as outside of containers and on other systems."""
    rooms = [room for folder, files in _groups() if (room := _room(folder, *files)) is not None]
    return min(rooms, default=None)


def _groups() -> list[tuple[Path, tuple[str, str, str]]]:
    """Every group that holds this process, the outermost one included, with the names of its files."""
    found = []
    for line in _lines(_TABLE):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, files = (_ROOT / controllers, _VERSION_1) if controllers else (_ROOT, _VERSION_2)
        own = Path(path.lstrip("/"))
        found += [(top / each, files) for each in (own, *own.parents)]
    return found


def _room(folder: Path, limit: str, usage: str, inactive: str) -> int | None:
    limits, used = _lines(folder / limit), _lines(folder / usage)
    if not (limits and used and limits[0].isdigit()):
        return None
    statistics = dict(line.split() for line in _lines(folder / "memory.stat") if line.count(" ") == 1)
    return max(0, int(limits[0]) - int(used[0]) + int(statistics.get(inactive, 0)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
