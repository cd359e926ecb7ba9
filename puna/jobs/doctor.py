"""What this machine is and what it can do, measured; and the choices that follow.

A 16-bit type is chosen for training only where its three products, forward and the two of the way back, run at least 1.3
times as fast as float32's: on many CPUs they are slower, and one of them far slower than the others. Results are kept in
the user's cache folder, keyed by processor, torch and threads.
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from puna.errors import DiskFull, FormatError
from puna.files import read_json, write_json
from puna.jobs.measured import cache_folder, processor
from puna.training.config import Precision

__all__ = ["DoctorResult", "choose_precision", "doctor", "product_flops"]

GAIN_NEEDED = 1.3
_ROWS, _WIDTH = 512, 2048
_GRADIENT_ROWS, _GRADIENT_WIDTH = 128, 1024
_MIN_SECONDS, _PASSES = 0.1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorResult:
    """What `puna doctor --json` prints. Rates are per second; gemm_flops by number of rows, for d_in = d_out = 2048.

    gradient_flops: of a Linear's three products by type, 128 rows, d_in = d_out = 1024: `output` x W^T, `input` dy W and
    `weight` dy^T x.
    """

    torch: str
    processor: str
    threads: int
    memory_bytes: int
    devices: list[str]
    gemm_flops: dict[str, float]
    gemm_flops_by_rows: dict[str, dict[str, float]]
    gradient_flops: dict[str, dict[str, float]]
    read_bytes_per_second: float
    chosen_precision: Precision


def doctor(*, refresh: bool = False) -> DoctorResult:
    """Measure this machine, or return what was measured before with the same processor, torch and threads."""
    path, kept = _cache_path(), _kept()
    if kept is not None and not refresh:
        return kept
    result = _measure()
    if path is not None:
        with suppress(DiskFull, OSError):  # the cache is a convenience
            write_json(path, asdict(result))
    return result


def choose_precision(asked: str) -> Precision:
    """The precision to train in: the one asked for, or for `auto` the one that doctor chose."""
    return doctor().chosen_precision if asked == "auto" else asked  # type: ignore[return-value]


def product_flops(precision: Precision, device: torch.device) -> float:
    """FLOP per second of large products on a device: what doctor kept, or else one quick measurement of its own."""
    kept = _kept()
    if kept is not None and device.type == _device().type:
        return kept.gemm_flops[precision]
    return _rate(precision, _ROWS, device)


def _kept() -> DoctorResult | None:
    """What was measured before on this machine; None where nothing was, or another version wrote it."""
    path = _cache_path()
    if path is None or not path.exists():
        return None
    try:
        return DoctorResult(**read_json(path))
    except (FormatError, TypeError):
        return None


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _measure() -> DoctorResult:
    device = _device()
    found = _Rates()
    for _ in range(_PASSES):
        found.improve(device)
    by_rows, gradients = found.by_rows, found.gradients
    gemm = {name: rates[str(_ROWS)] for name, rates in by_rows.items()}
    return DoctorResult(
        torch=torch.__version__,
        processor=processor(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        devices=["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        gemm_flops=gemm,
        gemm_flops_by_rows=by_rows,
        gradient_flops=gradients,
        read_bytes_per_second=found.read,
        chosen_precision=_chosen(gradients),
    )


class _Rates:
    """The highest rate of each product, of several passes: what else runs only ever slows one down, and seldom in each."""

    def __init__(self) -> None:
        self.by_rows: dict[str, dict[str, float]] = {name: {} for name in _KINDS}
        self.gradients: dict[str, dict[str, float]] = {name: {} for name in FLOATS}
        self.read = 0.0

    def improve(self, device: torch.device) -> None:
        """One pass more over all but what is too slow to be asked twice."""
        for name, rates in self.by_rows.items():
            for rows in (1, 16, 128, _ROWS):
                _improve(rates, str(rows), 2 * rows * _WIDTH**2, partial(_rate, name, rows, device))
        for name, rates in self.gradients.items():
            for part in _PARTS:
                flops = 2 * _GRADIENT_ROWS * _GRADIENT_WIDTH**2
                _improve(rates, part, flops, partial(_gradient_rate, name, part, device))
        self.read = max(self.read, _read_rate(device))


def _improve(rates: dict[str, float], key: str, flops: int, measure: Callable[[], float]) -> None:
    known = rates.get(key)
    if known is None or flops < known * _MIN_SECONDS:
        rates[key] = max(known or 0.0, measure())


def _chosen(gradients: dict[str, dict[str, float]]) -> Precision:
    """By the seconds of all three products."""
    narrow, wide = (sum(1 / max(rate, 1.0) for rate in gradients[name].values()) for name in ("bfloat16", "float32"))
    return "bfloat16" if wide >= GAIN_NEEDED * narrow else "float32"


FLOATS, _PARTS = ("float32", "bfloat16", "float16"), ("output", "input", "weight")
_KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def _rate(name: str, rows: int, device: torch.device) -> float:
    """Operations per second of a (rows, 2048) x (2048, 2048) product; 0 where this machine has no such product."""
    dtype = _KINDS[name]
    x, w = (torch.ones(n, _WIDTH, device=device).to(dtype) for n in (rows, _WIDTH))
    product: Callable[[], object] = (lambda: torch._int_mm(x, w.T)) if name == "int8" else (lambda: x @ w.T)
    try:
        seconds = _best_seconds(product, device)
    except RuntimeError:
        return 0.0
    return 2 * rows * _WIDTH * _WIDTH / seconds


def _gradient_rate(name: str, part: str, device: torch.device) -> float:
    """Operations per second of one of a Linear's three products; 0 where this machine has none of that type."""
    dtype, rows, width = _KINDS[name], _GRADIENT_ROWS, _GRADIENT_WIDTH
    x, dy, w = (torch.ones(n, width, device=device).to(dtype) for n in (rows, rows, width))
    products: dict[str, Callable[[], object]] = {
        "output": lambda: x @ w.T, "input": lambda: dy @ w, "weight": lambda: dy.T @ x,
    }  # fmt: skip
    try:
        return 2 * rows * width * width / _best_seconds(products[part], device)
    except RuntimeError:
        return 0.0


def _read_rate(device: torch.device) -> float:
    """Bytes per second of summing 512 MiB, more than any cache holds."""
    block = torch.ones(1 << 27, device=device)
    return block.nbytes / _best_seconds(block.sum, device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    best, until = float("inf"), time.perf_counter() + _MIN_SECONDS
    while best == float("inf") or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def _cache_path() -> Path | None:
    """Where results are kept; None where the user has no home folder."""
    folder = cache_folder()
    if folder is None:
        return None
    facts = [processor(), platform.machine(), torch.__version__, torch.get_num_threads(), torch.cuda.is_available()]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return folder / f"doctor-{key}.json"
