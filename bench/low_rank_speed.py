"""y = U (V x) against y = W x at a kept share of the numbers: one row, as a token is decoded, and a batch of rows.

    python bench/low_rank_speed.py [keep] [threads]

Each measurement is the median of 20, after 3, of all ways in turn, so that what else runs meets each of them alike. Float32,
no gradients. `stored (R, d_out)` keeps U transposed: its product then reads columns. `fused` is q, k, v sharing V against
three dense products, at their own kept share.
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.compression.allocation import uniform_rank
from puna.model.linears.fused import fused_linears
from puna.model.linears.group import project_together
from puna.model.linears.kind import dense_linear
from puna.model.linears.low_rank import LowRankLinear

SHAPES = ((4096, 4096), (14336, 4096))
HEIGHTS = (4096, 1024, 1024)  # q, k and v of Llama 3 8B
ROWS = (1, 32)
WARM, TIMES = 3, 20


def seconds(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median of each, measured in turn."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(WARM + TIMES):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            found[name].append(time.perf_counter() - started)
    return {name: median(times[WARM:]) for name, times in found.items()}


def factors(shape: tuple[int, int], keep: float) -> tuple[Tensor, Tensor]:
    """U and V of the rank that keeps this share."""
    rank = uniform_rank(shape, keep)
    if rank is None:
        raise SystemExit(f"keep: expected a share below 1 that factors can store, got {keep}")
    return torch.randn(shape[0], rank), torch.randn(rank, shape[1])


def transposed(x: Tensor, U_Ro: Tensor, V_Ri: Tensor) -> Tensor:
    """With U stored the other way round."""
    return F.linear(x, V_Ri) @ U_Ro


def show(what: str, found: dict[str, float]) -> None:
    """One line: the time of the first way, and how much faster each other is."""
    (first, base), *others = found.items()
    ratios = ", ".join(f"{name} {base / time:.2f}x" for name, time in others)
    print(f"{what}: {first} {1e3 * base:.2f} ms; {ratios}", flush=True)


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    keep = float(sys.argv[1]) if len(sys.argv) > 1 else 0.4
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 2)
    for shape in SHAPES:
        dense, (U_oR, V_Ri) = dense_linear(torch.randn(shape)), factors(shape, keep)
        thin, U_Ro = LowRankLinear(U_oR, V_Ri), U_oR.T.contiguous()
        for rows in ROWS:
            x = torch.randn(rows, shape[1])
            ways = {"dense": partial(dense, x), "factors": partial(thin, x)}
            ways["stored (R, d_out)"] = partial(transposed, x, U_Ro, V_Ri)
            show(f"{shape[0]} x {shape[1]}, rank {thin.rank}, {rows} rows", seconds(ways))
    U_oR, V_Ri = factors((sum(HEIGHTS), 4096), keep)
    fused, dense_group = fused_linears(U_oR.split(HEIGHTS), V_Ri), [dense_linear(torch.randn(h, 4096)) for h in HEIGHTS]
    apart = [LowRankLinear(*factors((height, 4096), keep)) for height in HEIGHTS]
    for rows in ROWS:
        x = torch.randn(1, rows, 4096)
        ways = {"dense": partial(project_together, x, *dense_group), "fused": partial(project_together, x, *fused)}
        ways["separate factors"] = partial(project_together, x, *apart)
        show(f"q, k, v, rank {fused[0].rank}, {rows} rows", seconds(ways))


if __name__ == "__main__":
    main()
