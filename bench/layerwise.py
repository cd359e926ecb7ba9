"""Compression layer by layer at a real model's shape: seconds a layer, peak anonymous memory, and what the whole would take.

    python bench/layerwise.py [--model llama-3.2-1b] [--layers 2] [--keep 0.8] [--windows 64] [--folder DIR]

Writes a sharded folder of random bfloat16 weights with so many layers (DIR must hold it and its compressed copy twice),
then runs `puna compress --method whitened` on it in a process of its own: windows x 512 tokens of random text. Anonymous
memory (RssAnon) is sampled every 20 ms; growth is over the level before the work. Prints a line for each layer on stderr
and one JSON object.
"""

import argparse
import json
import random
import string
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from anonymous import Sampler, anonymous_bytes
from convert import write_source

from puna.arch.presets import find_preset
from puna.jobs.calibration import WINDOW
from puna.jobs.compress import compress
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.layerwise import LayerEvent, LayerNotice
from puna.tokens.learning import SPECIALS, learn_tokenizer

BYTES = 256
WINDOWS_A_FILE = 32


def write_texts(folder: Path, windows: int) -> None:
    """Files of random letters: as many bytes as ids, BOS before each file's."""
    order = random.Random(0)
    for number, first in enumerate(range(0, windows, WINDOWS_A_FILE)):
        length = WINDOW * min(WINDOWS_A_FILE, windows - first) - 1
        (folder / f"{number:03d}.txt").write_text("".join(order.choices(string.ascii_letters + " ", k=length)))


def measure(source: Path, texts: Path, out: Path, keep: float) -> dict[str, object]:
    """Compress once, in this process."""
    level, started, ends = anonymous_bytes(), time.perf_counter(), list[float]()

    def observe(event: LayerEvent | LayerNotice) -> None:
        if isinstance(event, LayerNotice):
            print(event.message, file=sys.stderr, flush=True)
            if "about" in event.message and not ends:
                ends.append(time.perf_counter())
        elif event.share * event.layers >= len(ends):
            ends.append(time.perf_counter())
            print(f"layer {len(ends) - 1}: {ends[-1] - ends[-2]:.1f} s", file=sys.stderr, flush=True)

    recipe = CompressRecipe(
        model=source, calibration=texts, method="whitened", keep=keep, evaluate=source.parent / "judge.txt"
    )
    with Sampler(0.02) as sampler:
        compress(recipe, out, device="cpu", observers=(observe,))
    return {
        "total_seconds": round(time.perf_counter() - started, 1),
        "layer_seconds": [round(after - before, 1) for before, after in pairwise(ends)],
        "peak_anonymous_bytes": sampler.peak, "growth_bytes": sampler.peak - level,
    }  # fmt: skip


def main() -> None:
    """Write the model and the texts, then measure in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.2-1b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        place = arguments.one
        print(json.dumps(measure(place / "model", place / "texts", place / "out", arguments.keep)))
        return
    layers = find_preset(arguments.model).config.n_layers
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        place = Path(temporary)
        (place / "texts").mkdir()
        write_texts(place / "texts", arguments.windows)
        (place / "judge.txt").write_text("the llama walks again. " * 80)
        tokenizer = learn_tokenizer(["the llama"], BYTES + len(SPECIALS))
        write_source(arguments.model, place / "model", arguments.layers, tokenizer)
        command = [sys.executable, __file__, "--one", str(place), "--keep", str(arguments.keep)]
        facts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    seconds = facts["layer_seconds"]
    rest = facts["total_seconds"] - sum(seconds)
    whole = rest + layers * sum(seconds) / len(seconds)
    print(
        json.dumps(
            {"model": arguments.model, "layers": layers, **facts, "whole_model_seconds": round(whole, 1)}, indent=2
        )
    )


if __name__ == "__main__":
    main()
