"""Fewer bits by every format, and what corrections of low rank give back: added nats and stored bytes.

    python bench/bits.py MODEL TEXT... --judge TEXT [--ranks 8 16 64] [--keeps 0.8 0.6] [--windows 64] [--judged 200000]

Windows of 512 tokens, evenly drawn from the texts, are what corrections and factors are fitted to. Prints a line of JSON for
each format alone; for each format's corrections at every rank with the share of its added nats that they recover; and
for low rank (auto) at each kept share, dense and in int8. Added nats have their 95 % interval, paired over windows; bytes are
those of the block Linears.
"""

import copy
import json
from typing import Any

from judging import Judged, judging_parser

from puna.arch.rounding import ROUNDINGS
from puna.compression.residual import CORRECTIONS
from puna.compression.rounding import Residual, round_linears
from puna.compression.sizes import linear_bytes
from puna.compression.statistics import collect_statistics
from puna.jobs.factoring import factorise
from puna.model.llama import Llama


def main() -> None:
    """Round, correct, judge."""
    parser = judging_parser(__doc__)
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 16, 64])
    parser.add_argument("--keeps", type=float, nargs="*", default=[0.8, 0.6])
    given = parser.parse_args()
    judged = Judged(given)
    dense, grams = linear_bytes(judged.model), collect_statistics(judged.model, judged.windows).grams

    def line(model: Llama, **named: Any) -> float:
        added = judged.added(model)
        print(json.dumps({**named, "share": round(linear_bytes(model) / dense, 4), **added}), flush=True)
        return added["added"]

    for to in ROUNDINGS:
        model = copy.deepcopy(judged.model)
        round_linears(model, to)
        alone = line(model, bits=to)
        for rank in given.ranks:
            for correction in CORRECTIONS:
                model = copy.deepcopy(judged.model)
                round_linears(model, to, Residual(rank=rank, correction=correction, grams=grams))
                added = line(model, bits=to, correction=correction, rank=rank)
                print(json.dumps({"recovered": round(1 - added / alone, 3)}), flush=True)
    for keep in given.keeps:
        model = copy.deepcopy(judged.model)
        factorise(model, "auto", keep, "greedy", judged.windows)
        line(model, keep=keep)
        for to in ("int8", "q4_0"):
            smaller = copy.deepcopy(model)
            round_linears(smaller, to)
            line(smaller, keep=keep, bits=to)


if __name__ == "__main__":
    main()
