"""What `puna plan` says of a training step's peak, and of its seconds, beside what a process then holds and takes.

    python bench/plan.py [--only fixed judged] [--cases NAME...] [--steps N] [--allocated] [--own-rule]

Each setting runs in a process of its own: a model of random weights, a step on two short rows, which makes the optimizer's
moments, then one real step. Measured is the anonymous memory (RssAnon), sampled every 2 ms, beyond its level before the
model was built, with freed blocks given back at once, as a run has it whose plan only just fits; `--own-rule` leaves the C
library its slack. `--allocated` takes the allocator's own peak instead, by torch's profiler. The planner's constants were
fixed on the settings of FIXED; those of JUDGED judge it, where at least 1 GiB grows. `--steps 5` goes on in the same process,
with that slack: the machine's products are measured anew (as `puna doctor` does), then the median of so many steps is set
beside the predicted seconds. Prints a line of JSON for each setting, then the worst and the median error of each group.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from anonymous import Sampler, anonymous_bytes
from plan_cases import FIXED, JUDGED, Case, build, settings_of
from torch.profiler import ProfilerActivity, profile

from puna.jobs.c_heap import give_back_freed, keep_freed
from puna.jobs.doctor import doctor
from puna.jobs.measured import rates_of
from puna.model.batch import Batch
from puna.planning.memory import PROCESS_BYTES, peak_memory
from puna.planning.speed import step_seconds
from puna.training.activations import checkpointed_blocks
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer
from puna.training.step import train_step

GIB = 2**30


def stepper(case: Case) -> Callable[[int, int], None]:
    """A function that takes one step of micro-batches of (rows, seq) tokens."""
    model = build(case)
    whole = case.batch * case.micro_batches
    config = TrainingConfig(budget=StepBudget(steps=10), batch=whole, micro_batch=case.batch, seq=case.seq)
    optimizer = build_optimizer(model, config)

    def step(rows: int, seq: int) -> None:
        ids = torch.randint(case.model.vocab_size, (rows, seq + 1), generator=torch.Generator().manual_seed(0))
        places = torch.arange(seq).expand(rows, seq)
        packing = {"positions_BT": places % 100, "documents_BT": places // 100} if case.packed else {}
        batch = Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:], **packing)
        with checkpointed_blocks(model, is_on=case.checkpointing):
            train_step(model, optimizer, [batch] * case.micro_batches, rate=1e-4, clip=1.0, precision=case.precision)

    return step


def measure(case: Case, *, is_allocated: bool, is_frugal: bool, steps: int) -> dict[str, Any]:
    """Run one setting here."""
    if is_frugal:
        give_back_freed()
    before, started = anonymous_bytes(), time.perf_counter()
    plan = peak_memory(case.model, settings_of(case), 0 if is_allocated else PROCESS_BYTES)
    speed = {}
    if is_allocated:
        measured = allocated_peak(case)
    else:
        with Sampler(0.002) as sampler:
            step = stepper(case)
            step(2, 16)
            step(case.batch, case.seq)
        measured = sampler.peak - before
        keep_freed()
        speed = step_speed(case, step, steps) if steps else {}
    return {
        "name": case.name,
        "measured_bytes": measured,
        "planned_bytes": plan.total,
        "error": plan.total / measured - 1,
        **speed,
        "seconds": time.perf_counter() - started,
    }


def step_speed(case: Case, step: Callable[[int, int], None], steps: int) -> dict[str, Any]:
    """The median of so many steps, and what the planner says of one from rates that were measured just before."""
    rates, seconds = rates_of(asdict(doctor(refresh=True))), []
    step(case.batch, case.seq)
    for _ in range(steps):
        started = time.perf_counter()
        step(case.batch, case.seq)
        seconds.append(time.perf_counter() - started)
    planned, measured = (
        step_seconds(case.model, settings_of(case), rates, case.micro_batches),
        statistics.median(seconds),
    )
    return {
        "step_seconds": measured,
        "planned_step_seconds": planned,
        "step_error": planned / measured - 1,
        **asdict(rates),
    }


def allocated_peak(case: Case) -> int:
    """The largest sum of live bytes that the allocator handed out, the model's building included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step = stepper(case)
        step(2, 16)
        step(case.batch, case.seq)
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def main() -> None:
    """Measure the settings, a process for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("fixed", "judged"), default=("fixed", "judged"))
    parser.add_argument("--cases", nargs="+", help="names of settings; without it, all")
    parser.add_argument("--steps", type=int, default=0, help="steps to time; 0 times none")
    parser.add_argument("--allocated", action="store_true")
    parser.add_argument("--own-rule", action="store_true", help="the C library's slack is measured too")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    groups = {"fixed": FIXED, "judged": JUDGED}
    if arguments.here:
        case = next(case for case in (*FIXED, *JUDGED) if case.name == arguments.here)
        is_frugal = not arguments.own_rule
        print(json.dumps(measure(case, is_allocated=arguments.allocated, is_frugal=is_frugal, steps=arguments.steps)))
        return
    options = [
        "--steps",
        str(arguments.steps),
        *["--allocated"] * arguments.allocated,
        *["--own-rule"] * arguments.own_rule,
    ]
    for group in arguments.only:
        lines = []
        for case in groups[group]:
            if arguments.cases and case.name not in arguments.cases:
                continue
            command = [sys.executable, __file__, "--here", case.name, *options]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            lines.append(json.loads(output))
            print(json.dumps(lines[-1]), flush=True)
        if lines:
            print(json.dumps(summary(group, lines)))


def summary(group: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Worst and median error of a group, of memory where 1 GiB grew or constants were fixed, and of seconds."""
    found: dict[str, Any] = {"group": group}
    large = [line for line in lines if group == "fixed" or line["measured_bytes"] >= GIB]
    for name in ("error", "step_error"):
        errors = [abs(line[name]) for line in (large if name == "error" else lines) if name in line]
        if errors:
            found |= {f"{name}_settings": len(errors), f"worst_{name}": max(errors)}
            found |= {f"median_{name}": statistics.median(errors)}
    return found


if __name__ == "__main__":
    main()
