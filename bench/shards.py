"""What building token shards costs: MB/s on one core, and the anonymous memory of the process that does it.

    python bench/shards.py [--megabytes 2000] [--kinds jsonl jsonl.zst] [--text FILE ...] [--tokenizer PATH] [--folder DIR]

Writes the texts (left out: this Python's library), cut into documents of about 4 KB and repeated, each with a number of
its own so that none is a duplicate, to one file of each kind; then builds shards of it in a process of its own. That
process's anonymous memory (RssAnon) is sampled every 20 ms: `grown` is the peak beyond the level when everything was
imported and the tokenizer loaded, and `quarters` is the peak within each quarter of the time, which shows whether memory
follows the input. MB are of the text; a second is also given as one of the processor's, which other programs hardly
disturb, and beside it the rate of encoding alone. Without --tokenizer one of 8,192 tokens is learned. Prints one JSON
object.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import zstandard
from anonymous import Sampler

from puna.text.corpus import Document, cut_documents, read_documents
from puna.tokens.learning import learn_tokenizer

DOCUMENT_BYTES, LEARNED_BYTES, VOCAB_SIZE = 4_000, 2_000_000, 8_192
BUILD = """
import json, sys, time
from itertools import islice
from pathlib import Path
from puna.jobs.tokens import build
from puna.text.corpus import DocumentStream
from puna.tokens.shards import open_shards
from puna.weights.vocabulary import read_tokenizer

source, tokenizer, out = map(Path, sys.argv[1:])
loaded = read_tokenizer(tokenizer)
texts = [document.text for document in islice(DocumentStream([source]), 1000)]
begun = time.process_time()
for text in texts:
    loaded.encode(text)
alone = sum(len(text.encode()) for text in texts) / (time.process_time() - begun)
del texts
print("ready", flush=True)
begun = time.process_time()
result = build([source], tokenizer, out)
cpu = time.process_time() - begun
found = {"documents": result.documents, "tokens": result.tokens, "rate": result.bytes_per_second, "alone": alone}
print(json.dumps(found | {"cpu": open_shards(out).bytes / cpu}))
"""


def lines(pieces: list[Document], total: int) -> Iterator[bytes]:
    """JSON lines of `total` bytes of text."""
    number = written = 0
    while written < total:
        text = f"{number}\n{pieces[number % len(pieces)].text}"
        yield json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
        written += len(text.encode())
        number += 1


def write_input(path: Path, pieces: list[Document], total: int) -> None:
    """One file of the kind that its name says."""
    with path.open("wb") as file:
        if path.suffix == ".zst":
            with zstandard.ZstdCompressor(level=3).stream_writer(file) as packed:
                for line in lines(pieces, total):
                    packed.write(line)
        else:
            file.writelines(lines(pieces, total))


def measure(source: Path, tokenizer: Path, out: Path) -> dict[str, object]:
    """Build in a process of its own, and watch its memory."""
    command = [sys.executable, "-c", BUILD, str(source), str(tokenizer), str(out)]
    one_core = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one_core) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with Sampler(0.02, child.pid) as sampler:
            result = json.loads(child.stdout.read())
    level, samples = sampler.samples[0], sampler.samples
    quarter = -(-len(samples) // 4)
    return {
        "documents": result["documents"],
        "tokens": result["tokens"],
        "megabytes_per_second": round(result["rate"] / 1e6, 2),
        "megabytes_per_cpu_second": round(result["cpu"] / 1e6, 2),
        "encoding_alone_megabytes_per_cpu_second": round(result["alone"] / 1e6, 2),
        "level_megabytes": round(level / 1e6),
        "grown_megabytes": round((sampler.peak - level) / 1e6, 1),
        "quarters_megabytes": [
            round((max(samples[i : i + quarter]) - level) / 1e6, 1) for i in range(0, len(samples), quarter)
        ],
    }


def main() -> None:
    """Measure each kind in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--kinds", nargs="+", default=["jsonl", "jsonl.zst"], choices=["jsonl", "jsonl.zst"])
    parser.add_argument("--text", type=Path, nargs="+")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    texts = given.text or sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    pieces = list(cut_documents(read_documents(texts).documents, DOCUMENT_BYTES))
    found: dict[str, object] = {"megabytes": given.megabytes}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        tokenizer = given.tokenizer or folder / "tokenizer"
        if given.tokenizer is None:
            some = [piece.text for piece in pieces[: LEARNED_BYTES // DOCUMENT_BYTES]]
            learn_tokenizer(some, VOCAB_SIZE).save(tokenizer)
        for kind in given.kinds:
            source = folder / f"input.{kind}"
            write_input(source, pieces, given.megabytes * 1_000_000)
            found[kind] = measure(source, tokenizer, folder / "shards")
            source.unlink()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
