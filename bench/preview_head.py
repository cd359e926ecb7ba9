"""A preview head beside the head: how often its guess is right, how many rows the proof reads, and what a token costs.

    python bench/preview_head.py MODEL TEXT... --judge TEXT [--ranks 32 64 128] [--candidates 64] [--positions 4096]
    python bench/preview_head.py --shape 128256 2048 [--ranks 256 512] [--candidates 256] [--power 1] [--margin 8] [--rounds 9]

Of a model the covariance of what its head reads is that of windows of TEXT, and what the head reads of the judging text is
chosen from. Without a model the head is drawn: direction i is i^-power of the first (small-mha and a well-trained model of
3.5 M lie on both sides of 1, findings 41), and in what it reads one token stands out by --margin deviations of a score.
Prints a line of JSON for each rank: `equal` (guesses that are the arg-max), `proved_in` (share of rows that were read in
full: median, mean), `whole` (choices that the head itself made), microseconds of the head and of the preview in turn, and
whether all choices were the head's own.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import mean, median

import torch
from judging import WINDOW
from torch import Tensor

from puna.compression.embeddings import collect_table_statistics
from puna.compression.preview_head import PreviewHead
from puna.jobs.load import load
from puna.model.linears.kind import dense_weight

TIMED = 20


def of_model(
    model: Path, texts: list[Path], judge: Path, windows: int, positions: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The head, the covariance of what it reads, and what it reads of the judging text."""
    loaded = load(model)

    def cut(text: str, limit: int) -> list[Tensor]:
        ids = loaded.tokenizer.encode(text[: limit * 16])
        return [torch.tensor(ids[at : at + WINDOW])[None] for at in range(0, min(limit, len(ids)), WINDOW)]

    read = [
        window for path in texts for window in cut(path.read_text(encoding="utf-8"), windows * WINDOW // len(texts))
    ]
    covariance_DD = collect_table_statistics(loaded.llama, read).hidden_DD
    with torch.inference_mode():
        judged = cut(judge.read_text(encoding="utf-8"), positions)
        hidden_ND = torch.cat([loaded.llama.hidden(window).flatten(0, 1) for window in judged])
    return dense_weight(loaded.llama.lm_head).detach(), covariance_DD, hidden_ND


def drawn(vocabulary: int, dim: int, power: float, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """A head of falling directions, the covariance I, and what it reads."""
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(vocabulary, dim, generator=generator) * torch.arange(1.0, dim + 1).pow(-power)
    rows_ND = weight_VD[torch.randint(vocabulary, (200,), generator=generator)]
    noise_ND = torch.randn(200, dim, generator=generator)
    return weight_VD, torch.eye(dim), noise_ND + margin * rows_ND / rows_ND.norm(dim=1, keepdim=True)


@torch.inference_mode()
def judge(head: PreviewHead, hidden_ND: Tensor, rounds: int) -> dict[str, object]:
    """One rank's line."""
    own = [int((head.weight_VD @ hidden_D).argmax()) for hidden_D in hidden_ND]
    choices = [head.choose(hidden_D) for hidden_D in hidden_ND]
    vocabulary = len(head.weight_VD)
    works = {
        "head": lambda hidden_D: int((head.weight_VD @ hidden_D).argmax()),
        "preview": lambda hidden_D: head.choose(hidden_D).token,
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            for place in range(TIMED):
                work(hidden_ND[(turn * TIMED + place) % len(hidden_ND)])
            times[name].append((time.perf_counter() - began) / TIMED)
    ratios = [slow / fast for slow, fast in zip(times["head"], times["preview"], strict=True)]
    return {
        "rank": head.rank, "candidates": head.candidates, "positions": len(own),
        "equal": mean(choice.guess == token for choice, token in zip(choices, own, strict=True)),
        "all_own": all(choice.token == token for choice, token in zip(choices, own, strict=True)),
        "proved_in": [statistic([choice.scored / vocabulary for choice in choices]) for statistic in (median, mean)],
        "whole": mean(choice.scored == vocabulary for choice in choices),
        "microseconds": {name: round(1e6 * median(found)) for name, found in times.items()},
        "faster": [round(value, 2) for value in (median(ratios), min(ratios), max(ratios))],
    }  # fmt: skip


def main() -> None:
    """Build, choose, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("text", type=Path, nargs="*")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--shape", type=int, nargs=2)
    parser.add_argument("--power", type=float, default=1.0)
    parser.add_argument("--margin", type=float, default=8.0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    if given.shape:
        weight_VD, covariance_DD, hidden_ND = drawn(*given.shape, given.power, given.margin)
    else:
        weight_VD, covariance_DD, hidden_ND = of_model(
            given.model, given.text, given.judge, given.windows, given.positions
        )
    for rank in given.ranks:
        head = PreviewHead(weight_VD, covariance_DD, rank, given.candidates)
        print(json.dumps(judge(head, hidden_ND, given.rounds)), flush=True)


if __name__ == "__main__":
    main()
