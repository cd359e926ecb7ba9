"""What `puna doctor` keeps of this machine, and where; read without torch, so that a plan answers at once."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from puna.errors import FormatError
from puna.files import read_json
from puna.planning.speed import Rates

__all__ = ["cache_folder", "measured_rates", "processor", "rates_of"]


def measured_rates() -> Rates | None:
    """The rates that doctor kept of this processor and this torch, of most threads; None where it has not run, or a card was
    measured.
    """
    folder = cache_folder()
    kept = [] if folder is None else [found for path in sorted(folder.glob("doctor-*.json")) if (found := _read(path))]
    if not kept:
        return None
    return rates_of(max(kept, key=lambda found: int(found["threads"])))


def rates_of(found: Mapping[str, Any]) -> Rates:
    """What the planner needs of a result of doctor, given by its fields."""
    return Rates(
        flops_by_rows=found["gemm_flops_by_rows"],
        gradient_flops=found["gradient_flops"],
        read_bytes_per_second=float(found["read_bytes_per_second"]),
    )


def cache_folder() -> Path | None:
    """Where results are kept; None where the user has no home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "puna"
    except RuntimeError:
        return None


def processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "flags"))][:2]
    return named[0] if named else platform.processor()


def _read(path: Path) -> dict[str, Any] | None:
    """A kept result, where it is of this machine and whole."""
    rates = {"gemm_flops_by_rows", "gradient_flops", "read_bytes_per_second"}
    needed = {"torch", "processor", "threads", "devices", *rates}
    try:
        found, torch = read_json(path), version("torch")
    except (FormatError, PackageNotFoundError):
        return None
    if not (isinstance(found, dict) and needed <= found.keys()):
        return None
    is_here = (found["torch"], found["processor"], found["devices"]) == (torch, processor(), ["cpu"])
    return found if is_here else None
