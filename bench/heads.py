"""Fewer key-value heads by each way of pooling: nats that they add, and what distillation takes back.

    python bench/heads.py MODEL TEXT... --judge TEXT [--kv-heads 4 2 1] [--windows 64] [--judged 200000]
                          [--distil TOKENS] [--distil-heads 2] [--distil-poolings joint aligned mean] [--epochs 1]
                          [--rates 3e-4 1e-3 2e-3] [--batch 4] [--seq 256]

Windows of 512 tokens, evenly drawn from the texts, are what the pooling is fitted to. --distil takes so many tokens of the
texts, as many of each, and trains with them: the parent once, by the text's own tokens; each child by them too ("uptrained",
as in the paper), and to predict what the parent predicts as it was ("distilled"), so many epochs; and a child pooled from the
trained parent to predict what that predicts. Each at every rate, of which the best by its own held-out rows counts. Prints a
line of JSON for each: added nats on the judging text with their 95 % interval, paired over windows, counted from the parent as
it was; ratios of joint to the others; and of each child the nats more than the trained parent's.
"""

import argparse
import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import get_args

from judging import Judged, heal_in_passing, judging_parser

from puna.compression.fewer_heads import attention_grams, pool_key_value_heads
from puna.compression.heads import Pooling
from puna.compression.healing import train_everything
from puna.model.llama import Llama
from puna.training.config import StepBudget, TrainingConfig
from puna.training.step import Loss, batch_nats


class Bench(Judged):
    """A parent, what judges it, and what its heads are fitted to."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(given)
        self.grams = attention_grams(self.model, self.windows)

    def facts(self, model: Llama, **named: object) -> dict[str, object]:
        """A line: what this model adds."""
        return {**named, **self.added(model, digits=4)}

    def pooled(self, kv_heads: int, pooling: Pooling, parent: Llama | None = None) -> Llama:
        """A child of so many heads, of the model or of another parent."""
        child = copy.deepcopy(self.model if parent is None else parent)
        grams = self.grams if parent is None else attention_grams(parent, self.windows)
        pool_key_value_heads(child, kv_heads, grams, pooling)
        return child

    def trained(self, model: Llama, teacher: Llama, loss: Loss | None, epochs: int, given: argparse.Namespace) -> Llama:
        """The model after so many tokens, at the rate whose held-out rows are best. loss: None: the teacher's predictions."""
        tokens, rates = given.distil, given.rates
        each, documents = tokens // len(self.pieces), list[list[int]]()
        for pieces in self.pieces:
            documents += _first(pieces, each)
        random.Random(0).shuffle(documents)
        found: list[tuple[float, Llama]] = []
        for rate in rates:
            child = copy.deepcopy(model)
            train_everything(child)
            config = TrainingConfig(
                budget=StepBudget(steps=epochs * tokens // (given.batch * given.seq)), batch=given.batch, micro_batch=given.batch,
                seq=given.seq, learning_rate=rate, weight_decay=0.0, validate_every=25, checkpoint_every=25,
            )  # fmt: skip
            done = heal_in_passing(child, teacher, documents, config, loss)
            found.append((done.kl_after, child))
            print(
                json.dumps({"rate": rate, "steps": done.steps, "best": done.step, "held_out": done.kl_after}),
                flush=True,
            )
        return min(found, key=lambda each: each[0])[1]


def _first(pieces: Sequence[list[int]], tokens: int) -> Iterator[list[int]]:
    for ids in pieces:
        if tokens <= 0:
            return
        yield ids[:tokens]
        tokens -= len(ids)


def main() -> None:
    """Pool, judge, distil, judge."""
    parser = judging_parser(__doc__)
    parser.add_argument("--kv-heads", type=int, nargs="*", default=[4, 2, 1])
    parser.add_argument("--distil", type=int)
    parser.add_argument("--distil-heads", type=int, default=2)
    parser.add_argument("--distil-poolings", nargs="+", default=list(get_args(Pooling)))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 2e-3])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=256)
    given = parser.parse_args()
    bench = Bench(given)
    ways: tuple[Pooling, ...] = get_args(Pooling)
    for kv_heads in given.kv_heads:
        lines = {way: bench.facts(bench.pooled(kv_heads, way), kv_heads=kv_heads, pooling=way) for way in ways}
        joint = float(str(lines["joint"]["added"]))
        for facts in lines.values():
            print(json.dumps(facts | {"joint_over_it": round(joint / float(str(facts["added"])), 3)}), flush=True)
    if given.distil is None:
        return
    parent = bench.trained(bench.model, bench.model, batch_nats, 1, given)
    reference = bench.facts(parent, arm="parent, as many tokens")
    print(json.dumps(reference), flush=True)
    arms: dict[str, tuple[Llama | None, Loss | None, int]] = {
        "distilled": (None, None, given.epochs),
        "uptrained": (None, batch_nats, 1),
        "distilled from the trained parent": (parent, None, given.epochs),
    }
    for way in (way for way in ways if way in given.distil_poolings):
        for arm, (pooled_from, loss, epochs) in arms.items():
            child = bench.pooled(given.distil_heads, way, pooled_from)
            child = bench.trained(child, pooled_from or bench.model, loss, epochs, given)
            facts = bench.facts(child, arm=arm, kv_heads=given.distil_heads, pooling=way)
            more = float(str(facts["added"])) - float(str(reference["added"]))
            print(json.dumps(facts | {"more_than_parent": round(more, 4)}), flush=True)


if __name__ == "__main__":
    main()
