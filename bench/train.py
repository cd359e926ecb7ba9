"""Our training step beside transformers' own, on the same machine, in the same run, turn by turn.

    python bench/train.py [--pairs 7] [--precision float32|bfloat16] [--compile]

The shape is docs/performance.md's: 26.7 M parameters, 8 x 512 tokens, AdamW. Both train the same weights on the same
ids. Times are medians over interleaved pairs, after warm-up, with their spread; the peak is measured in a process of
its own for each engine, as growth over the built model. Prints one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch

from puna.arch.config import ModelConfig
from puna.jobs.peak import PeakMemory
from puna.model.batch import Batch
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer
from puna.training.step import autocast, train_step
from puna.weights.names import to_hf

CONFIG = ModelConfig(
    vocab_size=8192,
    dim=512,
    n_layers=8,
    n_heads=8,
    n_kv_heads=2,
    head_dim=64,
    ffn_dim=1408,
    max_seq_len=512,
    rope_theta=10_000.0,
    tied_embeddings=False,
)
BATCH, SEQ = 8, 512
TRAINING = TrainingConfig(budget=StepBudget(steps=1000), batch=BATCH, micro_batch=BATCH, seq=SEQ, learning_rate=3e-4)
WARM_UP = 2


def ids() -> torch.Tensor:
    """Seeded ids, one more than the inputs of each row."""
    return torch.randint(CONFIG.vocab_size, (BATCH, SEQ + 1), generator=torch.Generator().manual_seed(0))


def ours(precision: str, *, is_compiled: bool) -> Callable[[], float]:
    """Build our model; return one optimizer step."""
    model = initialise(Llama(CONFIG), 0)
    optimizer = build_optimizer(model, TRAINING)
    rows = ids()
    batch = Batch(ids_BT=rows[:, :-1], targets_BT=rows[:, 1:])
    config = replace(TRAINING, precision=precision)
    if is_compiled:
        for index, block in enumerate(model.layers):
            model.layers[index] = torch.compile(block, dynamic=False)

    def step() -> float:
        return train_step(model, optimizer, [batch], rate=3e-4, clip=1.0, precision=config.precision).nats

    return step


def hugging_face(model: Llama) -> torch.nn.Module:
    """transformers' model of the same shape and weights."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=model.config.vocab_size,
        hidden_size=model.config.dim,
        intermediate_size=model.config.ffn_dim,
        num_hidden_layers=model.config.n_layers,
        num_attention_heads=model.config.n_heads,
        num_key_value_heads=model.config.n_kv_heads,
        head_dim=model.config.head_dim,
        max_position_embeddings=model.config.max_seq_len,
        rms_norm_eps=model.config.norm_eps,
        tie_word_embeddings=model.config.tied_embeddings,
        attn_implementation="sdpa",
        use_cache=False,
    )
    other = LlamaForCausalLM(config)
    other.load_state_dict({to_hf(name): weight for name, weight in model.state_dict().items()})
    return other


def theirs(precision: str, *, is_compiled: bool) -> Callable[[], float]:
    """Build transformers' model with the same weights; return one optimizer step, the usual way."""
    model = hugging_face(initialise(Llama(CONFIG), 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    runner = torch.compile(model) if is_compiled else model
    return usual_step(runner, optimizer, ids(), precision)


def usual_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, rows: torch.Tensor, precision: str
) -> Callable[[], float]:
    """One optimizer step as transformers' users write it."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, torch.device("cpu")):
            logits = model(rows[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def take_turns(
    steps: dict[str, Callable[[], float]], pairs: int
) -> tuple[dict[str, float], dict[str, list[float]], list[float]]:
    """Two engines' steps in turn, after a warm-up. Returns: the last losses of the warm-up, the seconds of each, and the
    sorted ratios of the other engine's to the first one's.
    """
    for _ in range(WARM_UP):
        losses = {name: step() for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(pairs):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    first, other = seconds.values()
    return losses, seconds, sorted(their / our for our, their in zip(first, other, strict=True))


ENGINES = {"puna": ours, "transformers": theirs}


def peak_growth(engine: str, precision: str, *, is_compiled: bool) -> int:
    """Bytes that three steps hold over the built model, in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", engine, "--precision", precision]
    output = subprocess.run(command + ["--compile"] * is_compiled, check=True, capture_output=True, text=True).stdout
    return int(output)


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peak-of", choices=sorted(ENGINES))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.peak_of:
        step = ENGINES[arguments.peak_of](arguments.precision, is_compiled=arguments.compile)
        peak = PeakMemory(torch.device("cpu"))
        for _ in range(3):
            step()
        print(peak.growth_bytes())
        return
    steps = {name: build(arguments.precision, is_compiled=arguments.compile) for name, build in ENGINES.items()}
    losses, seconds, ratios = take_turns(steps, arguments.pairs)
    peaks = {name: peak_growth(name, arguments.precision, is_compiled=arguments.compile) for name in steps}
    report = {
        "precision": arguments.precision,
        "compiled": arguments.compile,
        "threads": torch.get_num_threads(),
        "losses_after_warm_up": losses,
        "tokens_per_second": {name: BATCH * SEQ / statistics.median(times) for name, times in seconds.items()},
        "speed_ratio": statistics.median(ratios),
        "speed_ratio_spread": [ratios[0], ratios[-1]],
        "peak_growth_bytes": peaks,
        "peak_ratio": peaks["puna"] / peaks["transformers"],
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
