"""Smaller tables: nats that they add, what they store, and what a token then costs, against the rank.

    python bench/embeddings.py MODEL TEXT... --judge TEXT [--ranks 32 64 128 192] [--sides both input head] [--windows 64]
                               [--judged 200000] [--rounds 9]

Windows of 512 tokens, evenly drawn from the texts, say how often tokens occur, what the loss feels and what the head reads.
Each of the three metrics is judged at every rank; of a pair that is not tied the input and the head alone as well. Prints a
line of JSON for each: added nats with their 95 % interval, paired over windows; the tables' numbers over the dense ones';
and for the two-sided pair microseconds of the lookup and of the head for one token, dense and factored, medians in turn.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import get_args

import torch
from judging import Judged, judging_parser

from puna.compression.embeddings import TableMetric, Tables, collect_table_statistics, factor_tables
from puna.compression.sizes import stored_parameters
from puna.model.llama import Llama

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
    parser = judging_parser(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 64, 128, 192])
    parser.add_argument("--sides", nargs="+", default=list(get_args(Tables)))
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    judged = Judged(given)
    dense, statistics = judged.model, collect_table_statistics(judged.model, judged.windows)
    sides = [
        side
        for side in get_args(Tables)
        if side in given.sides and (side == "both" or not dense.config.tied_embeddings)
    ]
    for rank in given.ranks:
        for tables in sides:
            for metric in METRICS:
                model = copy.deepcopy(dense)
                factor_tables(model, rank, statistics, metric, tables)
                line = {"rank": rank, "tables": tables, "metric": metric, **judged.added(model)}
                saved = stored_parameters(dense) - stored_parameters(model)
                print(json.dumps({**line, "numbers_saved": saved}), flush=True)
                if tables == "both" and metric == "two-sided":
                    print(
                        json.dumps(microseconds({"dense": dense, f"rank {rank}": model}, given.rounds)),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
