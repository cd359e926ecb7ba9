"""What a choice in training costs in held-out nats: one model, one seed, one order of data, 1,000 steps for each arm.

    python bench/learning.py [--arms float32 bfloat16 float16 ...] [--steps 1000] [--wide-products]

The model has 3.5 M parameters (2.5 M of them in products), the text is this Python's library, a step is 512 tokens. Judged
on at least 100,000 held-out tokens, in float32. Arms:

    float32, bfloat16, float16   the precision of the products; weights, gradients and moments stay float32
    bfloat16-weights,            no float32 copy: each weight is rounded to that type after its update, everything else
    float16-weights              is float32. What an update below half of the last place loses shows
    int8                         forward and gradient of the input from int8 values, a scale for each row and column;
                                 gradient of the weights in float32 (Wortsman et al. 2023, arXiv:2304.13013). The sums
                                 of such products are exact in float32 below 1,040 of them, so this is their arithmetic
    float32-two-threads          the same sums in another order: what chance alone does
    muon, wsd, constant          the optimizer for the blocks' matrices; the schedules

With --wide-products a product of 16-bit values is formed by the float32 kernel and rounded once at its end, which is what
the 16-bit kernels do too, but for the order of their sums: on a CPU without such instructions twenty times as fast.
Prints a line of JSON for each arm.
"""

import argparse
import json
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from puna.arch.config import ModelConfig
from puna.jobs.held_out import judge
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.text.corpus import read_documents
from puna.text.mixture import Mixture
from puna.tokens.learning import learn_tokenizer
from puna.tokens.shards import Shards, build_shards
from puna.training.batches import RowSource, ordered_windows
from puna.training.checkpoint import TrainState
from puna.training.config import ConstantSchedule, StableSchedule, StepBudget, TrainingConfig
from puna.training.events import BadStepEvent, Event, HeldOut, StepEvent
from puna.training.loop import LoopHooks, run_loop
from puna.training.optimizer import build_optimizer
from puna.training.rows import cut_rows

MODEL = ModelConfig(
    vocab_size=4096,
    dim=256,
    n_layers=2,
    n_heads=8,
    n_kv_heads=2,
    head_dim=32,
    ffn_dim=704,
    max_seq_len=128,
    rope_theta=10_000.0,
    tied_embeddings=False,
)
TEXT_BYTES, JUDGED_TOKENS = 6_000_000, 100_000
TRAINING = TrainingConfig(
    budget=StepBudget(steps=1000),
    batch=4,
    micro_batch=4,
    seq=128,
    learning_rate=1.5e-3,
    validate_every=10**9,
    checkpoint_every=10**9,
)
CHANGES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "bfloat16-weights": {},
    "float16-weights": {},
    "int8": {},
    "float32-two-threads": {},
    "muon": {"optimizer": "muon"},
    "wsd": {"schedule": StableSchedule()},
    "constant": {"schedule": ConstantSchedule()},
}


def make_shards(folder: Path) -> tuple[Shards, Shards]:
    """Text to train on, and text to judge by."""
    documents, size = [], 0
    for document in read_documents([Path(sysconfig.get_paths()["stdlib"])]).documents:
        if size < TEXT_BYTES:
            documents.append(document)
            size += len(document.text)
    tokenizer = learn_tokenizer((document.text for document in documents[::3]), MODEL.vocab_size)
    shards = build_shards(documents[::-1], tokenizer, folder)
    needed = next(n for n in range(1, len(documents)) if len(shards.split(n)[1]) > JUDGED_TOKENS)
    return shards.split(needed)


def rounded(values: Tensor, dim: int) -> Tensor:
    """The values that int8 with one scale along `dim` can say."""
    scale = values.abs().amax(dim, keepdim=True).clamp_min(1e-30) / 127
    return (values / scale).round_() * scale


class Int8Product(torch.autograd.Function):
    """y = x W^T and dx = dy W from int8 values; dW = dy^T x in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return rounded(x, -1) @ rounded(weight, 1).T

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        (dy,), (x, weight) = upstream, ctx.saved_tensors
        return rounded(dy, -1) @ rounded(weight, 0), dy.flatten(0, -2).T @ x.flatten(0, -2)


class Int8Linear(nn.Linear):
    """A Linear of such products; the head stays float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Args: input (..., in). Returns: (..., out)."""
        return Int8Product.apply(input, self.weight)


class WideProducts(TorchDispatchMode):
    """16-bit products by the float32 kernel, rounded at the end."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func.overloadpacket not in (torch.ops.aten.mm, torch.ops.aten.addmm) or args[-1].element_size() != 2:
            return func(*args, **kwargs)
        out = kwargs.pop("out", None)
        wide = func.overloadpacket(*(arg.float() for arg in args), **kwargs).to(args[-1].dtype)
        return wide if out is None else out.copy_(wide)


def after_each_update(arm: str, model: Llama) -> Callable[[Event], None]:
    """What an arm does to the weights when a step has ended."""
    dtype = {"bfloat16-weights": torch.bfloat16, "float16-weights": torch.float16}.get(arm)

    def observe(event: Event) -> None:
        if dtype is not None and isinstance(event, StepEvent):
            for weight in model.parameters():
                weight.data.copy_(weight.data.to(dtype))

    return observe


def run(
    arm: str, shards: Shards, held_out: Shards, steps: int, kernel: AbstractContextManager[object]
) -> dict[str, Any]:
    """Train one arm and judge it."""
    torch.set_num_threads(2 if arm == "float32-two-threads" else 1)
    config = replace(TRAINING, budget=StepBudget(steps=steps), **CHANGES[arm])
    model = initialise(Llama(MODEL), 0)
    if arm == "int8":
        for block in model.layers:
            for module in block.modules():
                if type(module) is nn.Linear:
                    module.__class__ = Int8Linear
    counts = {"overflows": 0}

    def count(event: Event) -> None:
        counts["overflows"] += isinstance(event, BadStepEvent)

    hooks = LoopHooks(validate=lambda: HeldOut(nats=0.0), save=lambda _: None, should_stop=lambda: False)
    source = RowSource([cut_rows(shards, config)], Mixture(weights=(1,)), config)
    optimizer, started = build_optimizer(model, config), time.monotonic()
    observers = (after_each_update(arm, model), count)
    with kernel:
        state = run_loop(model, optimizer, source, config, TrainState(), hooks, observers)
    seconds = time.monotonic() - started
    windows = ordered_windows(held_out, config.seq, 32)
    tokens = sum(batch.targets for batch in windows)
    nats = judge(model, {"held out": windows}).nats
    return {
        "arm": arm,
        "held_out_nats": nats,
        "judged_tokens": tokens,
        "last_nats": state.last_nats,
        "seconds": seconds,
        **counts,
    }


def main() -> None:
    """Run the arms and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(CHANGES), default=list(CHANGES))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--wide-products", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards, held_out = make_shards(Path(folder) / "shards")
        for arm in arguments.arms:
            kernel = WideProducts() if arguments.wide_products else nullcontext()
            print(json.dumps(run(arm, shards, held_out, arguments.steps, kernel)), flush=True)


if __name__ == "__main__":
    main()
