"""What a training step costs as one size grows: parameters, batch, sequence length, vocabulary. A table and a page.

    python bench/sweep.py [--only parameters batch seq vocabulary] [--steps 3] [--out sweep.html]

Around the shape of bench/train.py (26.7 M parameters, 8 x 512 tokens), float32. Each point runs in a process of its own: a
warm-up step, then the timed ones, whose median counts. FLOP are those of math.md (products, causal attention counted by
its visible pairs); memory is the growth over the built model's process, beside the planner's figure. Prints a line of
JSON a point and writes the page.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from train import BATCH, CONFIG, SEQ

from puna.arch.config import ModelConfig
from puna.jobs.peak import PeakMemory
from puna.jobs.train import planned_memory
from puna.model.batch import Batch
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.planning.compute import training_flops
from puna.planning.counting import parameter_count
from puna.planning.settings import FullTraining, Settings
from puna.report.axes import Axis
from puna.report.curves import LineChart, Series
from puna.report.numbers import human_bytes, human_count
from puna.report.page import Figure, Section, Table, render_page
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer
from puna.training.step import train_step

LONG_STEP = 8192  # tokens, whatever the length of a sequence
SHAPES = ((128, 5), (256, 6), (512, 8), (768, 12), (1024, 16))  # dim and layers: 3 M to 200 M parameters


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of a sweep; x is what varies."""

    sweep: str
    x: int
    model: ModelConfig
    batch: int = BATCH
    seq: int = SEQ


def points() -> list[Point]:
    """The four sweeps."""
    found = [
        Point(sweep="parameters", x=parameter_count(model), model=model)
        for model in map(shape, *zip(*SHAPES, strict=True))
    ]
    found += [Point(sweep="batch", x=batch, model=CONFIG, batch=batch) for batch in (1, 2, 4, 8, 16, 32)]
    for seq in (256, 512, 1024, 2048, 4096, 8192):
        model = replace(CONFIG, max_seq_len=seq)
        found.append(Point(sweep="seq", x=seq, model=model, batch=LONG_STEP // seq, seq=seq))
    for vocabulary in (4096, 8192, 16384, 32768, 65536, 131072):
        model = replace(CONFIG, vocab_size=vocabulary)
        found.append(Point(sweep="vocabulary", x=vocabulary, model=model))
    return found


def shape(dim: int, layers: int) -> ModelConfig:
    """A model of this width and depth in the proportions of the first."""
    ffn = (dim * 11 // 4 + 63) // 64 * 64
    return replace(CONFIG, dim=dim, n_layers=layers, ffn_dim=ffn, n_heads=dim // 64, n_kv_heads=max(1, dim // 256))


def measure(point: Point, steps: int) -> dict[str, Any]:
    """Run one point here."""
    model = initialise(Llama(point.model), 0)
    config = TrainingConfig(budget=StepBudget(steps=10), batch=point.batch, micro_batch=point.batch, seq=point.seq)
    peak, optimizer = PeakMemory(torch.device("cpu")), build_optimizer(model, config)
    rows = torch.randint(
        point.model.vocab_size, (point.batch, point.seq + 1), generator=torch.Generator().manual_seed(0)
    )
    batch, seconds = Batch(ids_BT=rows[:, :-1], targets_BT=rows[:, 1:]), []
    for _ in range(1 + steps):
        started = time.perf_counter()
        train_step(model, optimizer, [batch], rate=3e-4, clip=1.0, precision="float32")
        seconds.append(time.perf_counter() - started)
    median, tokens = statistics.median(seconds[1:]), point.batch * point.seq
    settings = Settings(method=FullTraining(), seq=point.seq, batch=point.batch, base="float32")
    plan, weights = planned_memory(point.model, config), sum(weight.nbytes for weight in model.parameters())
    return {
        "sweep": point.sweep,
        "x": point.x,
        "parameters": parameter_count(point.model),
        "step_tokens": tokens,
        "seconds": median,
        "spread": [min(seconds[1:]), max(seconds[1:])],
        "tokens_per_second": tokens / median,
        "gflops": training_flops(point.model, settings) / median / 1e9,
        "peak_growth_bytes": peak.growth_bytes(),
        "planned_growth_bytes": plan.total - weights,
    }


def write_page(found: list[dict[str, Any]], path: Path) -> None:
    """The picture and the table of each sweep."""
    sections = []
    for name in dict.fromkeys(row["sweep"] for row in found):
        rows = [row for row in found if row["sweep"] == name]
        x = [row["x"] for row in rows]
        charts = [
            LineChart(
                x=Axis(label=name, form="count", is_log=True),
                y=Axis(label=label, form="count"),
                series=[Series(name=label, x=x, y=[row[key] for row in rows])],
            )
            for key, label in (("tokens_per_second", "tokens a second"), ("gflops", "GFLOP/s"))
        ]
        table = Table(
            columns=(name, "tokens a step", "seconds a step", "tokens/s", "GFLOP/s", "memory grown", "planned"),
            rows=[
                (
                    human_count(row["x"]),
                    f"{row['step_tokens']:,}",
                    f"{row['seconds']:.2f}",
                    f"{row['tokens_per_second']:,.0f}",
                    f"{row['gflops']:.0f}",
                    human_bytes(row["peak_growth_bytes"]),
                    human_bytes(row["planned_growth_bytes"]),
                )
                for row in rows
            ],
        )
        figures = [Figure(content=chart, caption=f"{chart.y.label} by {name}") for chart in charts]
        sections.append(Section(title=name.capitalize(), words=(), items=(*figures, table)))
    path.write_text(render_page("What a step costs", "one size at a time", sections), encoding="utf-8")


def main() -> None:
    """Run the sweeps, a process for each point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("parameters", "batch", "seq", "vocabulary"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("sweep.html"))
    parser.add_argument("--point", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point is not None:
        print(json.dumps(measure(points()[arguments.point], arguments.steps)))
        return
    found = []
    for index, point in enumerate(points()):
        if arguments.only is None or point.sweep in arguments.only:
            command = [sys.executable, __file__, "--point", str(index), "--steps", str(arguments.steps)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(output))
            print(output.strip(), flush=True)
    write_page(found, arguments.out)


if __name__ == "__main__":
    main()
