"""`puna doctor`."""

from cyclopts import App

from puna.cli.console import print_json, print_table
from puna.cli.options import Json
from puna.report.numbers import human_bytes

__all__ = ["app"]

app = App(name="doctor")


@app.default
def doctor(*, refresh: bool = False, threads: int = 0, json: Json = False) -> None:
    """Measure this machine: the rate of each precision's products, memory bandwidth, and what follows.

    Args:
        refresh: measure again instead of reading what was measured before.
        threads: CPU threads; 0 leaves torch's choice.
    """
    from puna.jobs.doctor import doctor as measure
    from puna.jobs.machine import use_threads

    use_threads(threads)
    result = measure(refresh=refresh)
    if json:
        print_json(result)
        return
    print_table(
        ("machine", ""),
        [
            ("processor", result.processor),
            ("threads", str(result.threads)),
            ("memory", human_bytes(result.memory_bytes, is_binary=True)),
            ("devices", ", ".join(result.devices)),
            ("torch", result.torch),
            ("memory read", f"{human_bytes(result.read_bytes_per_second)}/s"),
            ("training precision", result.chosen_precision),
        ],
    )
    rows = [
        (name, *(f"{rate / 1e9:,.0f}" for rate in rates.values())) for name, rates in result.gemm_flops_by_rows.items()
    ]
    print_table(("products, GFLOP/s", *(f"{rows} rows" for rows in result.gemm_flops_by_rows["float32"])), rows)
    parts = {"output": "x Wᵀ", "input": "dy W", "weight": "dyᵀ x"}
    rows = [(name, *(f"{rates[part] / 1e9:,.1f}" for part in parts)) for name, rates in result.gradient_flops.items()]
    print_table(("forward and back, GFLOP/s", *parts.values()), rows)
