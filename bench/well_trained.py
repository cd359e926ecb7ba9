"""A model worth compressing: 3.5 M parameters in products, trained on Python sources for about an hour on two cores.

    python bench/well_trained.py OUT [--tokens 8M] [--megabytes 30] [--kv-heads 2] [--resume]

An undertrained model's matrices are nearly of low rank, and every way of compressing them looks free. Gathers sources of
the Python that runs this, its installed packages included, a file in 40 held out; learns a vocabulary of 4,096, trains by
Muon. OUT holds text/calibration.jsonl (of what was learned from), text/held_out.jsonl, tokenizer/, shards/ and run/, for

    python bench/compress.py OUT/run OUT/text/calibration.jsonl --judge OUT/text/held_out.jsonl --other PROSE
"""

import argparse
import json
import random
import sysconfig
from dataclasses import replace
from pathlib import Path

from puna.arch.config import ModelConfig
from puna.cli.progress import training_progress
from puna.jobs import tokens
from puna.jobs.quantities import parse_count
from puna.jobs.train import train
from puna.jobs.train_recipe import DataSource, TrainRecipe
from puna.text.corpus import read_documents
from puna.training.config import StableSchedule, TokenBudget, TrainingConfig

VOCABULARY, HELD_OUT = 4096, 40
CALIBRATION_BYTES = 4_000_000
MODEL = ModelConfig(
    vocab_size=VOCABULARY, dim=256, n_layers=5, n_heads=8, n_kv_heads=2, head_dim=32, ffn_dim=704, max_seq_len=512,
    rope_theta=10_000.0, tied_embeddings=False,
)  # fmt: skip


def gather(folder: Path, size: int) -> None:
    """Write learned.jsonl, calibration.jsonl (its beginning) and held_out.jsonl, files in a random order."""
    paths = sysconfig.get_paths()
    documents = list(
        read_documents([Path(paths[name]) for name in ("stdlib", "purelib")], exclude=_is_no_source).documents
    )
    random.Random(0).shuffle(documents)
    folder.mkdir(parents=True)
    room, calibration = size, CALIBRATION_BYTES
    with (
        (folder / "learned.jsonl").open("w", encoding="utf-8") as learned,
        (folder / "calibration.jsonl").open("w", encoding="utf-8") as calibrated,
        (folder / "held_out.jsonl").open("w", encoding="utf-8") as held_out,
    ):
        for number, document in enumerate(documents):
            if room <= 0:
                break
            room -= len(document.text)
            line = json.dumps({"text": document.text}) + "\n"
            if number % HELD_OUT == 0:
                held_out.write(line)
                continue
            learned.write(line)
            if calibration > 0:
                calibrated.write(line)
                calibration -= len(document.text)


def _is_no_source(path: Path) -> bool:
    return path.name in ("__pycache__", "test", "tests") or (path.is_file() and path.suffix != ".py")


def main() -> None:
    """Gather, learn, train; goes on where it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=parse_count, default=8_000_000)
    parser.add_argument("--megabytes", type=int, default=30)
    parser.add_argument("--kv-heads", type=int, default=MODEL.n_kv_heads, help="8 for a parent of bench/heads.py")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    text, tokenizer, shards = (given.out / name for name in ("text", "tokenizer", "shards"))
    if not given.resume:
        gather(text, given.megabytes * 1_000_000)
        tokens.learn([text / "calibration.jsonl"], VOCABULARY, tokenizer)
        tokens.build([text / "learned.jsonl"], tokenizer, shards)
    training = TrainingConfig(
        budget=TokenBudget(tokens=given.tokens), batch=8, micro_batch=8, seq=512, learning_rate=2e-3, optimizer="muon",
        schedule=StableSchedule(decay=0.3), validate_every=100, checkpoint_every=100,
    )  # fmt: skip
    recipe = TrainRecipe(
        model=replace(MODEL, n_kv_heads=given.kv_heads), training=training, data=(DataSource(path=shards),)
    )
    with training_progress("training") as observer:
        result = train(recipe, given.out / "run", resume=given.resume, observers=(observer,))
    print(
        json.dumps(
            {
                "steps": result.steps,
                "tokens_per_second": result.tokens_per_second,
                "validation_nats": result.validation_nats,
            }
        )
    )


if __name__ == "__main__":
    main()
