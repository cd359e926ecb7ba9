"""What converting a large checkpoint costs: seconds, and the anonymous memory of the process that does it.

    python bench/convert.py [--model llama-3.2-1b|llama-3-8b] [--folder DIR] [--targets gguf meta hf gguf:q8_0]

Writes a sharded Hugging Face folder of random bfloat16 weights in the model's shape, then converts it, each target in a
process of its own, which removes its result again. Anonymous memory (RssAnon) is sampled every 5 ms; what it grew by
beyond the level after import is set beside the law of docs/formats.md 0: 1.5 x the largest tensor + 300 MB. Opening is
timed apart: every tensor mapped, none read. Prints one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from anonymous import Sampler, anonymous_bytes

from puna.arch.presets import find_preset
from puna.files import remove_folder, staged_folder
from puna.tokens.tokenizer import Tokenizer
from puna.weights.config_json import config_to_json
from puna.weights.conversion import DTYPE_CHOICES, convert_checkpoint
from puna.weights.folder import write_settings, write_shards
from puna.weights.headers import read_header
from puna.weights.names import expected_tensors
from puna.weights.stored import StoredTensors

LAW_FACTOR, LAW_BYTES = 1.5, 300_000_000


def write_source(name: str, folder: Path, layers: int | None = None, tokenizer: Tokenizer | None = None) -> None:
    """Random weights at their usual scale, a tensor at a time. Args: layers: None: as many as the preset has."""
    config, generator = find_preset(name).config, torch.Generator().manual_seed(0)
    config = config if layers is None else replace(config, n_layers=layers)
    shapes = {item.name: item.shape for item in expected_tensors(config, kind="hf")}

    def draw(tensor: str) -> torch.Tensor:
        return torch.empty(shapes[tensor], dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)

    with staged_folder(folder) as staged:
        write_shards(staged, [(tensor, "BF16", shape) for tensor, shape in shapes.items()], draw)
        write_settings(staged, config_to_json(config, bos_id=None, eos_ids=(), dtype="bfloat16"), tokenizer)


def measure(source: Path, folder: Path, target: str) -> dict[str, object]:
    """Convert once, in this process."""
    to, _, dtype = target.partition(":")
    out = folder / ("out.gguf" if to == "gguf" else f"out-{to}")
    level = anonymous_bytes()
    started = time.perf_counter()
    with Sampler(0.005) as sampler:
        header = read_header(source)
        done = convert_checkpoint(header, out, to, dtype=DTYPE_CHOICES[dtype] if dtype else None)  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    largest = max(max(tensor.bytes for tensor in read_header(place).tensors) for place in (source, out))
    growth, law = sampler.peak - level, LAW_FACTOR * largest + LAW_BYTES
    result = {
        "target": target, "bytes": done.bytes, "seconds": round(seconds, 1), "anonymous_growth_bytes": growth,
        "allowed_bytes": int(law), "share_of_allowed": round(growth / law, 3), "opening": opening(out),
    }  # fmt: skip
    remove_folder(out)
    return result


def opening(path: Path) -> dict[str, object]:
    """Read the header and map every tensor, without reading one."""
    level, started = anonymous_bytes(), time.perf_counter()
    header = read_header(path)
    stored = StoredTensors(header)
    mapped = [stored.mapped(expected) for expected in header.expected()]
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 3), "anonymous_growth_bytes": anonymous_bytes() - level, "tensors": len(mapped)}


def main() -> None:
    """Measure every target in a fresh process."""
    parser = argparse.ArgumentParser(description="What converting a large checkpoint costs.")
    parser.add_argument("--model", default="llama-3.2-1b")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--targets", nargs="+", default=["gguf", "meta", "hf", "gguf:q8_0"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(arguments.folder if arguments.one else temporary)
        source = folder / "source"
        if arguments.one:
            print(json.dumps(measure(source, folder, arguments.one)))
            return
        write_source(arguments.model, source)
        results = [json.loads(run_alone(folder, target)) for target in arguments.targets]
        facts = {"model": arguments.model, "source_opening": opening(source), "conversions": results}
        print(json.dumps(facts, indent=2))


def run_alone(folder: Path, target: str) -> str:
    """One target in a process that has only just started."""
    command = [sys.executable, __file__, "--folder", str(folder), "--one", target]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
