"""Smaller tables: nats that they add, what they store, and what a token then costs, against the rank.

    python bench/embeddings.py MODEL TEXT... --judge TEXT [--ranks 32 64 128 192] [--windows 64] [--judged 200000] [--rounds 9]

Windows of 512 tokens, evenly drawn from the texts, say how often tokens occur, what the loss feels and what the head reads.
Each of the three metrics is judged at every rank; of a pair that is not tied the input and the head alone as well. Prints a
line of JSON for each: added nats with their 95 % interval, paired over windows; the tables' numbers over the dense ones';
and for the two-sided pair microseconds of the lookup and of the head for one token, dense and factored, medians in turn.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch
from heads import pieces_of

from puna.compression.embeddings import TableMetric, Tables, collect_table_statistics, factor_tables
from puna.compression.sizes import stored_parameters
from puna.evaluation.agreement import added_nats
from puna.evaluation.perplexity import evaluate_text
from puna.jobs.load import load
from puna.model.llama import Llama

WINDOW = 512
METRICS: tuple[TableMetric, ...] = ("plain", "frequency", "two-sided")


@torch.no_grad()
def microseconds(models: Mapping[str, Llama], rounds: int) -> dict[str, float]:
    """Of each model's lookup and head, one token, in turn."""
    hidden_1D = torch.randn(1, next(iter(models.values())).config.dim)
    works: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        works[f"{name} lookup"] = lambda model=model: model.embed_tokens(torch.tensor([[7]]))
        works[f"{name} head"] = lambda model=model: model.lm_head(hidden_1D)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            work()
            started = time.perf_counter()
            for _ in range(20):
                work()
            times[name].append((time.perf_counter() - started) / 20)
    return {name: round(1e6 * median(found), 1) for name, found in times.items()}


def main() -> None:
    """Factor, judge, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 64, 128, 192])
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--judged", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    loaded = load(given.model)
    judge = given.judge.read_text(encoding="utf-8")[: given.judged]
    before = evaluate_text(loaded.llama, loaded.tokenizer, judge)
    each = -(-given.windows // len(given.text))
    windows = [torch.tensor(ids)[None, :WINDOW] for path in given.text for ids in pieces_of(loaded, path)[-each:]]
    statistics = collect_table_statistics(loaded.llama, windows)
    sides: tuple[Tables, ...] = ("both",) if loaded.config.tied_embeddings else ("both", "input", "head")
    for rank in given.ranks:
        for tables in sides:
            for metric in METRICS:
                model = copy.deepcopy(loaded.llama)
                factor_tables(model, rank, statistics, metric, tables)
                added = added_nats(before, evaluate_text(model, loaded.tokenizer, judge))
                facts = {"added": added.mean, "low": added.low, "high": added.high}
                line = {"rank": rank, "tables": tables, "metric": metric, **{k: round(v, 5) for k, v in facts.items()}}
                saved = stored_parameters(loaded.llama) - stored_parameters(model)
                print(json.dumps({**line, "numbers_saved": saved}), flush=True)
                if tables == "both" and metric == "two-sided":
                    print(
                        json.dumps(microseconds({"dense": loaded.llama, f"rank {rank}": model}, given.rounds)),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
