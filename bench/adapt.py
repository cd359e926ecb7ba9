"""A LoRA step beside transformers + PEFT's own, on the same machine, in the same run, turn by turn.

    python bench/adapt.py [--shape 103m|1b] [--pairs 5] [--checkpointing]

Shapes are docs/performance.md's: 103 M parameters with 4 x 512 tokens, Llama-3.2-1B's with 1 x 512; r = 16 on all Linears,
float32, AdamW. Both train adapters that begin alike beside the same weights, on the same ids. Times are medians over
interleaved pairs, after warm-up, with their spread; memory is the growth over the built model, in a process of its own for
each engine: adapters, gradients, moments and activations. Prints one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from train import hugging_face, take_turns, usual_step

from puna.adaptation.targets import attach
from puna.arch.config import ModelConfig
from puna.arch.modules import LINEARS
from puna.arch.presets import PRESETS
from puna.jobs.peak import PeakMemory
from puna.model.batch import Batch
from puna.model.init import initialise
from puna.model.linears.adapter import LoraSettings
from puna.model.llama import Llama
from puna.training.activations import checkpointed_blocks
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer, trainable
from puna.training.step import train_step

MIDDLE = ModelConfig(
    vocab_size=32_000,
    dim=768,
    n_layers=12,
    n_heads=12,
    n_kv_heads=4,
    head_dim=64,
    ffn_dim=2048,
    max_seq_len=512,
    rope_theta=10_000.0,
    tied_embeddings=True,
)
SHAPES = {"103m": (MIDDLE, 4), "1b": (replace(PRESETS["llama-3.2-1b"].config, max_seq_len=512), 1)}
SEQ = 512
LORA = LoraSettings(rank=16, alpha=32.0, targets=LINEARS)


def ids(config: ModelConfig, batch: int) -> torch.Tensor:
    """Seeded ids, one more than the inputs of each row."""
    return torch.randint(config.vocab_size, (batch, SEQ + 1), generator=torch.Generator().manual_seed(0))


def ours(shape: str, *, checkpointing: bool) -> Callable[[], Callable[[], float]]:
    """Build our model; return what attaches the adapter and gives one optimizer step."""
    config, batch = SHAPES[shape]
    model = initialise(Llama(config), 0)

    def start() -> Callable[[], float]:
        attach(model, LORA, 0)
        training = TrainingConfig(
            budget=StepBudget(steps=10), batch=batch, micro_batch=batch, seq=SEQ, weight_decay=0.0
        )
        optimizer, rows = build_optimizer(model, training), ids(config, batch)
        one = Batch(ids_BT=rows[:, :-1], targets_BT=rows[:, 1:])

        def step() -> float:
            with checkpointed_blocks(model, is_on=checkpointing):
                outcome = train_step(model, optimizer, [one], rate=1e-3, clip=1.0, precision="float32")
            assert outcome is not None
            return outcome.nats

        return step

    return start


def theirs(shape: str, *, checkpointing: bool) -> Callable[[], Callable[[], float]]:
    """Build transformers' model with the same weights; return what attaches PEFT's adapter and gives one optimizer step."""
    config, batch = SHAPES[shape]
    base = hugging_face(initialise(Llama(config), 0))

    def start() -> Callable[[], float]:
        from peft import LoraConfig, get_peft_model

        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            base.enable_input_require_grads()
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=list(LINEARS), task_type="CAUSAL_LM")
        model = get_peft_model(base, lora).train()
        weights = trainable(model).values()
        optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        return usual_step(model, optimizer, ids(config, batch), "float32")

    return start


ENGINES = {"puna": ours, "peft": theirs}


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="103m")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--peak-of", choices=sorted(ENGINES))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    shape, checkpointing = arguments.shape, arguments.checkpointing
    if arguments.peak_of:
        start = ENGINES[arguments.peak_of](shape, checkpointing=checkpointing)
        peak = PeakMemory(torch.device("cpu"))
        step = start()
        for _ in range(2):
            step()
        print(peak.growth_bytes())
        return
    steps = {name: build(shape, checkpointing=checkpointing)() for name, build in ENGINES.items()}
    losses, seconds, ratios = take_turns(steps, arguments.pairs)
    tokens = SHAPES[shape][1] * SEQ
    del steps
    command = [sys.executable, __file__, "--shape", shape, *["--checkpointing"] * checkpointing, "--peak-of"]
    peaks = {name: int(subprocess.run([*command, name], check=True, capture_output=True).stdout) for name in ENGINES}
    report = {
        "shape": shape,
        "checkpointing": checkpointing,
        "threads": torch.get_num_threads(),
        "losses_after_warm_up": losses,
        "tokens_per_second": {name: tokens / statistics.median(times) for name, times in seconds.items()},
        "speed_ratio": statistics.median(ratios),
        "speed_ratio_spread": [ratios[0], ratios[-1]],
        "peak_growth_bytes": peaks,
        "peak_ratio": peaks["puna"] / peaks["peft"],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
