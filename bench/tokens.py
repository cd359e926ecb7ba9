"""How fast text becomes ids, on one core: ours beside the libraries that made each vocabulary.

    python bench/tokens.py TOKENIZER.model ... --text FILE ...

Each text is cut into documents of about 4 KB, repeated until there are 8 MB, and encoded by every encoder in turn, five
times over; the median is printed in MB/s, with the spread. Equal ids are checked first. Then what is worst for a
tokenizer: a megabyte of one character, and its half, in seconds. Peers: tiktoken, tokenizers (transformers' converter
writes its file) and sentencepiece, called once a document, without threads.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sentencepiece
import tiktoken
import tokenizers

from puna.text.corpus import Document, cut_documents
from puna.tokens.byte_level import LLAMA3_PATTERN
from puna.tokens.ranks import RankEncoding, parse_ranks
from puna.tokens.tokenizer import Tokenizer, load_tokenizer

DOCUMENT, TOTAL, ROUNDS = 4_000, 8_000_000, 5
WORST = {"letters": "a", "blanks": " ", "line ends": "\n", "digits": "1", "combining marks": "\u0301"}

Encoder = Callable[[str], list[int]]


def encoders(path: Path, ours: Tokenizer) -> dict[str, Encoder]:
    """Ours first, then the peers that read the same vocabulary."""
    library = tokenizers.Tokenizer.from_str(ours.encoding.json_text())
    library.encode_special_tokens = True  # names of special tokens in a text are text
    found: dict[str, Encoder] = {
        "puna": ours.encode,
        "tokenizers": lambda text: library.encode(text, add_special_tokens=False).ids,
    }
    if isinstance(ours.encoding, RankEncoding):
        ranks = {token: rank for rank, token in enumerate(parse_ranks(path.read_bytes(), path))}
        peer = tiktoken.Encoding("peer", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
        return found | {"tiktoken": peer.encode_ordinary}
    return found | {"sentencepiece": sentencepiece.SentencePieceProcessor(str(path)).encode}


def documents(text: str) -> list[str]:
    """Pieces of a text, cut at line ends, repeated to TOTAL bytes."""
    pieces = [piece.text for piece in cut_documents([Document(text=text, source="text", name="text")], DOCUMENT)]
    return pieces * max(1, TOTAL // len(text.encode()))


def speeds(by_name: dict[str, Encoder], pieces: list[str]) -> dict[str, str]:
    """MB/s of each, median of ROUNDS with the extremes; the encoders take turns."""
    size = sum(len(piece.encode()) for piece in pieces) / 1e6
    rates: dict[str, list[float]] = {name: [] for name in by_name}
    for _ in range(ROUNDS):
        for name, encode in by_name.items():
            started = time.perf_counter()
            for piece in pieces:
                encode(piece)
            rates[name].append(size / (time.perf_counter() - started))
    return {
        name: f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})" for name, found in rates.items()
    }


def worst(encode: Encoder) -> dict[str, dict[str, float]]:
    """Seconds for a megabyte of one character, and by how much longer that takes than half of it."""
    found = {}
    for name, character in WORST.items():
        text, times = character * (1_000_000 // len(character.encode())), []
        for part in (text[: len(text) // 2], text):
            started = time.perf_counter()
            encode(part)
            times.append(time.perf_counter() - started)
        found[name] = {"seconds_per_MB": round(times[1], 2), "twice_over_once": round(times[1] / times[0], 2)}
    return found


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description="How fast text becomes ids.")
    parser.add_argument("tokenizers", nargs="+", type=Path)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    arguments = parser.parse_args()
    result = {}
    for path in arguments.tokenizers:
        ours = load_tokenizer(path)
        by_name = encoders(path, ours)
        texts = {text.name: documents(text.read_text(encoding="utf-8")) for text in arguments.text}
        equal = {
            name: all(encode(piece) == ours.encode(piece) for pieces in texts.values() for piece in pieces[:50])
            for name, encode in by_name.items()
        }
        rates = {text: speeds(by_name, pieces) for text, pieces in texts.items()}
        result[str(path)] = {"equal_ids": equal, "MB_per_second": rates, "worst": worst(ours.encode)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
