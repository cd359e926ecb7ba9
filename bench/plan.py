"""What `puna plan` says of a training step's peak beside what a process then holds, on a processor.

    python bench/plan.py [--only fixed judged] [--cases NAME...] [--allocated] [--mmap-threshold BYTES]

Each setting runs in a process of its own: a model of random weights, a step on two short rows, which makes the optimizer's
moments, then one real step. Measured is the anonymous memory (RssAnon), sampled every 2 ms, beyond its level before the
model was built. The planner's constants were fixed on the settings of FIXED; those of JUDGED judge it, where at least
1 GiB grows. `--allocated` takes the allocator's own peak instead, by torch's profiler: what the tensors need, without the
slack of the C library; `--mmap-threshold 1048576` has glibc give every tensor of a megabyte pages of its own, which it
gives back at once, so that almost no slack is left. Prints a line of JSON for each setting, then the worst and the median
error of each group.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from anonymous import Sampler, anonymous_bytes
from torch.profiler import ProfilerActivity, profile

from puna.adaptation.targets import attach
from puna.arch.config import ModelConfig
from puna.arch.modules import LINEARS, linear_paths
from puna.model.batch import Batch
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.int8 import Int8Linear
from puna.model.linears.nf4 import Nf4Linear
from puna.model.llama import Llama
from puna.model.positions import rope_frequencies
from puna.model.surgery import get_linear, replace_linear
from puna.planning.memory import PROCESS_BYTES, peak_memory
from puna.planning.settings import Base, FullTraining, LoraTraining, Settings
from puna.training.activations import checkpointed_blocks
from puna.training.config import Precision, StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer
from puna.training.step import train_step

GIB = 2**30
MODEL = ModelConfig(
    vocab_size=8192,
    dim=512,
    n_layers=8,
    n_heads=8,
    n_kv_heads=2,
    head_dim=64,
    ffn_dim=1408,
    max_seq_len=4096,
    tied_embeddings=False,
)
WIDE = replace(MODEL, dim=1024, n_heads=16, n_kv_heads=4, ffn_dim=2816)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting. adapter: None trains everything."""

    name: str
    model: ModelConfig = MODEL
    adapter: Literal["lora", "dora", "pissa"] | None = None
    rank: int = 16
    base: Base = "float32"
    precision: Precision = "float32"
    checkpointing: bool = False
    batch: int = 8
    seq: int = 512
    packed: bool = False


FIXED = (
    Case(name="full"),
    Case(name="full batch 2", batch=2),
    Case(name="full wide", model=WIDE, batch=4),
    Case(name="full vocabulary", model=replace(MODEL, vocab_size=65_536), batch=4),
    Case(name="full autocast", precision="bfloat16"),
    Case(name="lora", adapter="lora"),
    Case(name="lora autocast", adapter="lora", precision="bfloat16"),
    Case(name="dora bfloat16", adapter="dora", base="bfloat16", batch=4),
    Case(name="lora int8", model=WIDE, adapter="lora", base="int8", batch=4),
    Case(name="lora nf4 checkpointing", model=WIDE, adapter="lora", base="nf4", batch=4, checkpointing=True),
)
VOCABULARY = replace(MODEL, vocab_size=65_536)
JUDGED = (
    Case(name="full wide, few tokens", model=WIDE, batch=1, seq=128),
    Case(name="full, vocabulary 131,072", model=replace(MODEL, vocab_size=131_072), batch=1, seq=256),
    Case(name="full wide, checkpointing", model=WIDE, batch=2, seq=256, checkpointing=True),
    Case(name="lora, vocabulary 65,536", model=VOCABULARY, adapter="lora", batch=4),
    Case(name="lora wide", model=WIDE, adapter="lora", batch=4),
    Case(name="dora wide", model=WIDE, adapter="dora", batch=2),
    Case(name="lora packed", adapter="lora", batch=2, seq=2048, packed=True),
    Case(name="pissa", adapter="pissa"),
    Case(name="full, batch 16", batch=16),
    Case(name="full packed", batch=4, seq=1024, packed=True),
    Case(name="lora wide autocast", model=WIDE, adapter="lora", precision="bfloat16", batch=4),
    Case(name="full wide autocast", model=WIDE, precision="bfloat16", batch=2),
    Case(name="lora wide bfloat16", model=WIDE, adapter="lora", base="bfloat16", batch=8),
    Case(name="dora wide int8", model=WIDE, adapter="dora", base="int8", batch=8),
    Case(name="lora wide nf4", model=WIDE, adapter="lora", base="nf4", batch=8),
)


def build(case: Case) -> Llama:
    """Random weights in the base's form, a tensor at a time, and the adapter."""
    with torch.device("meta"):
        model = Llama(case.model)
    model.frequencies_P = rope_frequencies(case.model)
    dtype = torch.float32 if case.base == "float32" else torch.bfloat16
    paths = list(linear_paths(case.model)) if case.base in ("int8", "nf4") else []
    for path in paths:
        linear = get_linear(model, path)
        weight = torch.empty(linear.out_features, linear.in_features, dtype=dtype).normal_(0, 0.02)
        replace_linear(model, path, (Int8Linear if case.base == "int8" else Nf4Linear).from_dense(weight))
    for name, weight in list(model.named_parameters()):
        parent, _, own = name.rpartition(".")
        drawn = torch.empty(weight.shape, dtype=dtype).normal_(1.0 if weight.dim() == 1 else 0.0, 0.02)
        setattr(model.get_submodule(parent), own, torch.nn.Parameter(drawn))
    if case.adapter is not None:
        kinds: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"magnitudes": True}, "pissa": {"start": "pissa"}}
        attach(model, LoraSettings(rank=case.rank, alpha=case.rank, targets=LINEARS, **kinds[case.adapter]), seed=0)
    return model


def settings_of(case: Case) -> Settings:
    """What the planner is asked."""
    lora = LoraTraining(rank=case.rank, magnitudes=case.adapter == "dora", starts=case.adapter == "pissa")
    return Settings(
        method=lora if case.adapter else FullTraining(),
        seq=case.seq,
        batch=case.batch,
        base=case.base,
        checkpointing=case.checkpointing,
        packed=case.packed,
        own_loop=True,
        autocast=case.precision != "float32",
    )


def stepper(case: Case) -> Callable[[int, int], None]:
    """A function that takes one step on (batch, seq) tokens."""
    model = build(case)
    config = TrainingConfig(budget=StepBudget(steps=10), batch=case.batch, micro_batch=case.batch, seq=case.seq)
    optimizer = build_optimizer(model, config)

    def step(rows: int, seq: int) -> None:
        ids = torch.randint(case.model.vocab_size, (rows, seq + 1), generator=torch.Generator().manual_seed(0))
        places = torch.arange(seq).expand(rows, seq)
        packing = {"positions_BT": places % 100, "documents_BT": places // 100} if case.packed else {}
        batch = Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:], **packing)
        with checkpointed_blocks(model, is_on=case.checkpointing):
            train_step(model, optimizer, [batch], rate=1e-4, clip=1.0, precision=case.precision)

    return step


def measure(case: Case, *, is_allocated: bool) -> dict[str, Any]:
    """Run one setting here."""
    before, started = anonymous_bytes(), time.perf_counter()
    plan = peak_memory(case.model, settings_of(case), 0 if is_allocated else PROCESS_BYTES)
    if is_allocated:
        measured = allocated_peak(case)
    else:
        with Sampler(0.002) as sampler:
            step = stepper(case)
            step(2, 16)
            step(case.batch, case.seq)
        measured = sampler.peak - before
    return {
        "name": case.name,
        "measured_bytes": measured,
        "planned_bytes": plan.total,
        "error": plan.total / measured - 1,
        "seconds": time.perf_counter() - started,
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
    parser.add_argument("--allocated", action="store_true")
    parser.add_argument("--mmap-threshold", type=int, help="bytes; without it, the C library's own rule")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    threshold = arguments.mmap_threshold
    environment = os.environ | ({} if threshold is None else {"MALLOC_MMAP_THRESHOLD_": str(threshold)})
    groups = {"fixed": FIXED, "judged": JUDGED}
    if arguments.here:
        case = next(case for case in (*FIXED, *JUDGED) if case.name == arguments.here)
        print(json.dumps(measure(case, is_allocated=arguments.allocated)))
        return
    for group in arguments.only:
        errors = []
        for case in groups[group]:
            if arguments.cases and case.name not in arguments.cases:
                continue
            command = [sys.executable, __file__, "--here", case.name] + ["--allocated"] * arguments.allocated
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            line = json.loads(output)
            print(json.dumps(line), flush=True)
            if group == "fixed" or line["measured_bytes"] >= GIB:
                errors.append(abs(line["error"]))
        if errors:
            worst, median = max(errors), statistics.median(errors)
            print(json.dumps({"group": group, "settings": len(errors), "worst_error": worst, "median_error": median}))


if __name__ == "__main__":
    main()
