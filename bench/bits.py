"""Fewer bits by every format, and what corrections of low rank give back: added nats and stored bytes.

    python bench/bits.py MODEL TEXT... --judge TEXT [--ranks 8 16 64] [--keeps 0.8 0.6] [--windows 64] [--judged 200000]

Windows of 512 tokens, evenly drawn from the texts, are what corrections and factors are fitted to. Prints a line of JSON for
each format alone; for each format's corrections at every rank with the share of its added nats that they recover; and
for low rank (auto) at each kept share, dense and in int8. Added nats have their 95 % interval, paired over windows; bytes are
those of the block Linears.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from heads import pieces_of

from puna.arch.rounding import ROUNDINGS
from puna.compression.residual import CORRECTIONS
from puna.compression.rounding import Residual, round_linears
from puna.compression.sizes import linear_bytes
from puna.compression.statistics import collect_statistics
from puna.evaluation.agreement import added_nats
from puna.evaluation.perplexity import evaluate_text
from puna.jobs.factoring import factorise
from puna.jobs.load import load
from puna.model.llama import Llama

WINDOW = 512


def main() -> None:
    """Round, correct, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 16, 64])
    parser.add_argument("--keeps", type=float, nargs="*", default=[0.8, 0.6])
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--judged", type=int, default=200_000)
    given = parser.parse_args()
    loaded = load(given.model)
    judge = given.judge.read_text(encoding="utf-8")[: given.judged]
    before, dense = evaluate_text(loaded.llama, loaded.tokenizer, judge), linear_bytes(loaded.llama)
    each = -(-given.windows // len(given.text))
    windows = [torch.tensor(ids)[None, :WINDOW] for path in given.text for ids in pieces_of(loaded, path)[-each:]]
    grams = collect_statistics(loaded.llama, windows).grams

    def line(model: Llama, **named: Any) -> float:
        added = added_nats(before, evaluate_text(model, loaded.tokenizer, judge))
        figures = {"added": added.mean, "low": added.low, "high": added.high}
        rounded = {name: round(value, 5) for name, value in figures.items()}
        print(json.dumps({**named, "share": round(linear_bytes(model) / dense, 4), **rounded}), flush=True)
        return added.mean

    for to in ROUNDINGS:
        model = copy.deepcopy(loaded.llama)
        round_linears(model, to)
        alone = line(model, bits=to)
        for rank in given.ranks:
            for correction in CORRECTIONS:
                model = copy.deepcopy(loaded.llama)
                round_linears(model, to, Residual(rank=rank, correction=correction, grams=grams))
                added = line(model, bits=to, correction=correction, rank=rank)
                print(json.dumps({"recovered": round(1 - added / alone, 3)}), flush=True)
    for keep in given.keeps:
        model = copy.deepcopy(loaded.llama)
        factorise(model, "auto", keep, "greedy", windows)
        line(model, keep=keep)
        for to in ("int8", "q4_0"):
            smaller = copy.deepcopy(model)
            round_linears(smaller, to)
            line(smaller, keep=keep, bits=to)


if __name__ == "__main__":
    main()
