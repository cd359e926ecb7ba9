"""Plain against whitened SVD on a demo's own model, paired over windows of its held-out text.

    python bench/low_rank.py runs/demo

Calibrates on 128 windows of the training shards, judges on the held-out ones. Prints, for each kept share, the added
nats of both methods and their paired difference with its 95 % interval.
"""

import copy
import sys
from pathlib import Path

from puna.compression.allocation import uniform_ranks
from puna.compression.low_rank import compress_low_rank, decompose_linears
from puna.compression.statistics import collect_statistics
from puna.evaluation.agreement import Difference, added_nats
from puna.evaluation.perplexity import evaluate_windows
from puna.tokens.shards import open_shards
from puna.training.batches import ordered_windows
from puna.weights.loading import load_llama

KEEPS = (0.9, 0.8, 0.6)
CALIBRATION, JUDGED = 128, 600


def shown(difference: Difference) -> str:
    """A mean with its interval."""
    return f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"


def main() -> None:
    """Measure and print."""
    demo = Path(sys.argv[1])
    model = load_llama(demo / "train" / "model")
    seq = model.config.max_seq_len
    judged = ordered_windows(open_shards(demo / "shards" / "held_out"), seq, 16, JUDGED)
    calibration = ordered_windows(open_shards(demo / "shards" / "train"), seq, 8, CALIBRATION)
    grams = collect_statistics(model, (batch.ids_BT for batch in calibration)).grams
    spectra = {"plain": dict(decompose_linears(model)), "whitened": dict(decompose_linears(model, grams))}
    dense = evaluate_windows(model, judged)
    print(f"dense: {dense.nats_per_token:.4f} nats on {len(dense.window_nats)} windows of {seq}")
    for keep in KEEPS:
        smaller = {}
        for method, parts in spectra.items():
            candidate = copy.deepcopy(model)
            compress_low_rank(candidate, parts.items(), uniform_ranks(model.config, keep))
            smaller[method] = evaluate_windows(candidate, judged)
        added = {method: shown(added_nats(dense, likelihood)) for method, likelihood in smaller.items()}
        difference = shown(added_nats(smaller["whitened"], smaller["plain"]))
        print(f"keep {keep}: plain {added['plain']}, whitened {added['whitened']}, plain - whitened {difference}")


if __name__ == "__main__":
    main()
