"""What local attention costs beside full causal attention: against the window, the length and the number of blocks; and a step.

    python bench/patterns.py [--tokens 8192] [--window 256] [--heads 8] [--width 64] [--longest 65536] [--rounds 5] [--threads 2]
                             [--plot FILE.svg] [--only-lengths]

Forward and backward of one row, float32 on a CPU: torch's fused causal attention and each pattern in turn, medians. Then a
window at n, 2 n, ... up to --longest (the ratio of neighbours; causal attention up to 4 n as well), blocks of n / g, and a
training step of the preset `small` at 2,048 tokens with and without a window. Prints a line of JSON for each; --plot draws
time against length.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from puna.arch.attention_pattern import Blocks, Causal, LayerPattern, SlidingWindow
from puna.arch.presets import PRESETS
from puna.model.batch import Batch
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.model.visibility import ways_to_attend
from puna.report.charts import Axis, LineChart, Series, draw_slide
from puna.training.step import batch_nats

CPU = torch.device("cpu")


def attention(pattern: LayerPattern, tokens: int, heads: int, width: int) -> Callable[[], object]:
    """One row forward and backward."""
    q, k, v, dy = (torch.randn(1, tokens, heads, width).transpose(1, 2).requires_grad_() for _ in range(4))
    config = replace(PRESETS["tiny"].config, n_heads=heads, n_kv_heads=heads, n_layers=1, pattern=pattern)

    def work() -> object:
        (attend,) = ways_to_attend(config, tokens, None, None, CPU, torch.float32)
        return torch.autograd.grad(attend(q, k, v, None), (q, k, v), dy)

    return work


def training_step(pattern: LayerPattern, tokens: int) -> Callable[[], object]:
    """Loss and gradients of the preset `small`, one row."""
    model = initialise(Llama(replace(PRESETS["small"].config, max_seq_len=tokens, pattern=pattern)), seed=0)
    ids = torch.randint(model.config.vocab_size, (1, tokens + 1))
    batch = Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:])

    def work() -> object:
        return torch.autograd.grad(batch_nats(model, batch).sum, list(model.parameters()))

    return work


def seconds(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Of each, in turn, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number:
                times[name].append(time.perf_counter() - started)
    return times


def compare(what: str, works: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Print each median with its spread, and how many times as fast as the first it is."""
    times = seconds(works, rounds)
    first = median(next(iter(times.values())))
    for name, each in times.items():
        line = {"seconds": median(each), "least": min(each), "most": max(each), "times_as_fast": first / median(each)}
        print(
            json.dumps({"what": what, "pattern": name, **{key: round(value, 4) for key, value in line.items()}}),
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "tokens": 8192,
        "window": 256,
        "heads": 8,
        "width": 64,
        "longest": 65536,
        "rounds": 5,
        "threads": 2,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only-lengths", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    n, window = given.tokens, given.window
    shape = given.heads, given.width
    patterns: dict[str, LayerPattern] = {
        "causal": Causal(),
        f"window {window}": SlidingWindow(window=window),
        f"window {window}, 4 sinks": SlidingWindow(window=window, sinks=4),
        **{f"{g} blocks": Blocks(size=n // g) for g in (4, 16, 64)},
        "16 blocks, shifted": Blocks(size=n // 16, shifted=True),
    }
    if not given.only_lengths:
        compare(f"{n:,} tokens", {name: attention(each, n, *shape) for name, each in patterns.items()}, given.rounds)
    by_length = lengths(given, shape)
    if given.plot is not None:
        given.plot.write_text(picture(by_length, window), encoding="utf-8")
    if given.only_lengths:
        return
    for tokens in (2048, 4096):
        steps = {"causal": Causal(), "window": SlidingWindow(window=window)}
        works = {name: training_step(each, tokens) for name, each in steps.items()}
        compare(f"a step of {tokens:,} tokens", works, given.rounds)


def lengths(given: argparse.Namespace, shape: tuple[int, int]) -> dict[str, dict[int, float]]:
    """Seconds by pattern and length, printed with the ratio of neighbours."""
    tokens, before, n = given.tokens, 0.0, given.tokens
    by_length: dict[str, dict[int, float]] = {"window": {}, "causal": {}}
    while tokens <= given.longest:
        works = {"window": attention(SlidingWindow(window=given.window), tokens, *shape)}
        if tokens <= 2 * n:
            works["causal"] = attention(Causal(), tokens, *shape)
        found = {name: median(each) for name, each in seconds(works, given.rounds).items()}
        ratio = {"window_over_half_the_tokens": round(found["window"] / before, 3)} if before else {}
        print(
            json.dumps({"tokens": tokens, **{name: round(each, 4) for name, each in found.items()}, **ratio}),
            flush=True,
        )
        for name, each in found.items():
            by_length[name][tokens] = each
        tokens, before = 2 * tokens, found["window"]
    return by_length


def picture(by_length: Mapping[str, Mapping[int, float]], window: int) -> str:
    """Time against length, on logarithmic scales, as an SVG file."""
    names = {"window": f"window of {window}", "causal": "causal, torch's own"}
    series = [Series(name=names[name], x=list(times), y=list(times.values())) for name, times in by_length.items()]
    across, up = Axis(label="tokens in a row", is_log=True), Axis(label="seconds, forward and backward", is_log=True)
    return draw_slide(LineChart(x=across, y=up, series=series), title="Time of attention against the row's length")


if __name__ == "__main__":
    main()
