"""What rank, alpha and learning rate do to an adaptation: a fixed grid on one checkpoint and one set of records.

    python bench/lora_grid.py MODEL RECORDS OLD [--steps 150] [--part grid rates]

grid: r in 4, 16, 64 x alpha / r in 0.5, 1, 2, 4 x lora, rslora, at the default rate; rates: five learning rates at each
rank, alpha = 2 r. Each run starts from MODEL with the same rows in the same order: 2 x 256 tokens a step, all Linears,
loss on completions. OLD is a text of the kind that MODEL knows. Prints a line of JSON for each run: nats of 60 held-out
rows and of the last 40,000 characters of OLD, before and after, and |dW| / |W|.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puna.adaptation.records import RecordSettings
from puna.adaptation.rows import RecordSource, Row, collate
from puna.adaptation.targets import attach, detach, relative_update
from puna.arch.modules import LINEARS
from puna.evaluation.perplexity import evaluate_text, evaluate_windows
from puna.jobs.adapt_data import pack_data
from puna.jobs.load import LoadedModel, load
from puna.model.linears.adapter import LoraSettings
from puna.training.checkpoint import TrainState
from puna.training.config import StepBudget, TrainingConfig
from puna.training.events import HeldOut
from puna.training.loop import LoopHooks, run_loop
from puna.training.optimizer import build_optimizer

RANKS, RATIOS = (4, 16, 64), (0.5, 1.0, 2.0, 4.0)
RATES, DEFAULT_RATE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), 1e-3
BATCH, SEQ, JUDGED_ROWS, OLD_CHARACTERS = 2, 256, 60, 40_000


def runs(parts: list[str]) -> Iterator[dict[str, Any]]:
    """The settings of each run."""
    if "grid" in parts:
        for is_stabilized in (False, True):
            for rank in RANKS:
                for ratio in RATIOS:
                    yield {"rank": rank, "ratio": ratio, "rslora": is_stabilized, "rate": DEFAULT_RATE}
    if "rates" in parts:
        for rank in RANKS:
            for rate in RATES:
                yield {"rank": rank, "ratio": 2.0, "rslora": False, "rate": rate}


class Judge:
    """Nats on the held-out rows and on the old text."""

    def __init__(self, loaded: LoadedModel, rows: list[Row], old: str) -> None:
        self._loaded, self._old = loaded, old
        self._batches = [collate(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]

    def __call__(self) -> tuple[float, float]:
        new = evaluate_windows(self._loaded.llama, self._batches).nats_per_token
        return new, evaluate_text(self._loaded.llama, self._loaded.tokenizer, self._old).nats_per_token


def run(loaded: LoadedModel, rows: list[Row], judge: Judge, steps: int, choice: dict[str, Any]) -> dict[str, Any]:
    """Attach, learn, judge, take off again."""
    lora = LoraSettings(
        rank=choice["rank"], alpha=choice["ratio"] * choice["rank"], targets=LINEARS, rank_stabilized=choice["rslora"]
    )
    attach(loaded.llama, lora, seed=0)
    config = TrainingConfig(
        budget=StepBudget(steps=steps), batch=BATCH, micro_batch=BATCH, seq=SEQ, learning_rate=choice["rate"],
        weight_decay=0.0, validate_every=10**9, checkpoint_every=10**9,
    )  # fmt: skip
    hooks = LoopHooks(validate=lambda: HeldOut(nats=0.0), save=lambda _: None, should_stop=lambda: False)
    started = time.monotonic()
    source = RecordSource(rows, BATCH, BATCH, seed=0)
    run_loop(loaded.llama, build_optimizer(loaded.llama, config), source, config, TrainState(), hooks)
    seconds, (new, old) = time.monotonic() - started, judge()
    update = relative_update(loaded.llama)
    detach(loaded.llama)
    return {
        **choice, "new": round(new, 4), "old": round(old, 4), "relative_update": round(update, 4),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    """Run the parts and print every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--part", nargs="+", choices=("grid", "rates"), default=["grid", "rates"])
    arguments = parser.parse_args()
    loaded = load(arguments.model)
    packed = pack_data([arguments.records], None, RecordSettings(), loaded, seq=SEQ, anyway=True)
    rows, judged = packed.rows, [row for rows in packed.held_out.values() for row in rows]
    text = arguments.old.read_text(encoding="utf-8")[-OLD_CHARACTERS:]
    judge = Judge(loaded, judged[:JUDGED_ROWS], text)
    new, old = judge()
    print(json.dumps({"before": True, "new": round(new, 4), "old": round(old, 4), "rows": len(rows)}), flush=True)
    for choice in runs(arguments.part):
        print(json.dumps(run(loaded, rows, judge, arguments.steps, choice)), flush=True)


if __name__ == "__main__":
    main()
