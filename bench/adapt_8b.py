"""LoRA beside Llama 3 8B's real shape on a processor: peak memory, planned and measured, and seconds per step.

    python bench/adapt_8b.py [--model llama-3-8b] [--bases int8 nf4 mapped] [--steps 1] [--seq 512] [--folder DIR]

Writes a sharded folder of random bfloat16 weights (16 GB for the 8B; DIR must hold it), then adapts it on each base in a
process of its own: r = 16 on all Linears, 1 x 512 tokens, checkpointing, float32 stream and products. `int8` and `nf4` are
rounded tensor by tensor while loading; `mapped` leaves the bfloat16 matrices in their file. Measured is anonymous memory
(RssAnon) sampled every 5 ms, as growth over the level before loading, loading included; with glibc's threshold at 1 MiB,
so that freed tensors go back at once (docs/findings.md 18). Prints a line of JSON for each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from anonymous import Sampler, anonymous_bytes
from convert import write_source

from puna.adaptation.targets import attach
from puna.arch.modules import LINEARS
from puna.arch.presets import find_preset
from puna.jobs.load import load
from puna.model.batch import Batch
from puna.model.linears.adapter import LoraSettings
from puna.planning.memory import PROCESS_BYTES, peak_memory
from puna.planning.settings import LoraTraining, Settings
from puna.training.activations import checkpointed_blocks
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer
from puna.training.step import train_step

LORA = LoraSettings(rank=16, alpha=32.0, targets=LINEARS)
BASES = {
    "int8": {"base": "int8", "dtype": torch.float32},
    "nf4": {"base": "nf4", "dtype": torch.float32},
    "mapped": {"base": "bfloat16", "dtype": torch.float32, "mapped": True},
}


def planned_bytes(name: str, kind: str, seq: int) -> int:
    """What the planner says of the step."""
    base = "bfloat16" if kind == "mapped" else kind
    settings = Settings(
        method=LoraTraining(rank=16), seq=seq, batch=1, base=base, checkpointing=True, own_loop=True, is_wide=True,
        mapped=kind == "mapped",
    )  # fmt: skip
    return peak_memory(find_preset(name).config, settings, PROCESS_BYTES).total


def measure(name: str, kind: str, folder: Path, steps: int, seq: int) -> dict[str, object]:
    """Load, adapt and count, in this process."""
    level, started = anonymous_bytes(), time.perf_counter()
    with Sampler(0.005) as sampler:
        model = load(folder, **BASES[kind]).llama  # type: ignore[arg-type]
        loading, loading_peak = time.perf_counter() - started, sampler.peak - level
        attach(model, LORA, seed=0)
        config = TrainingConfig(budget=StepBudget(steps=steps), batch=1, micro_batch=1, seq=seq, weight_decay=0.0)
        optimizer = build_optimizer(model, config)
        ids = torch.randint(model.config.vocab_size, (1, seq + 1), generator=torch.Generator().manual_seed(0))
        batch, nats, seconds = Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:]), [], []
        for _ in range(steps):
            started = time.perf_counter()
            with checkpointed_blocks(model):
                outcome = train_step(model, optimizer, [batch], rate=1e-3, clip=1.0, precision="float32")
            assert outcome is not None
            nats.append(round(outcome.nats, 4))
            seconds.append(round(time.perf_counter() - started, 1))
    measured, planned = sampler.peak - level, planned_bytes(name, kind, seq)
    return {
        "base": kind, "loading_seconds": round(loading, 1), "loading_peak_bytes": loading_peak, "measured_bytes": measured,
        "planned_bytes": planned, "error": round(planned / measured - 1, 4), "step_seconds": seconds, "nats": nats,
    }  # fmt: skip


def main() -> None:
    """Write the model, then measure each base in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--bases", nargs="+", choices=sorted(BASES), default=["int8", "nf4", "mapped"])
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        facts = measure(arguments.model, arguments.one, arguments.folder, arguments.steps, arguments.seq)
        print(json.dumps(facts))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary) / "model"
        write_source(arguments.model, folder)
        for kind in arguments.bases:
            command = [sys.executable, __file__, "--model", arguments.model, "--folder", folder, "--one", kind]
            command += ["--steps", str(arguments.steps), "--seq", str(arguments.seq)]
            given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=given_back)
            print(done.stdout, end="", flush=True)


if __name__ == "__main__":
    main()
