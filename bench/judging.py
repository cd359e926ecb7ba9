"""What benches of compression share: a model judged before and after, windows of the texts, and a healing that leaves no run.

Not run by itself.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from puna.evaluation.agreement import added_nats
from puna.evaluation.perplexity import evaluate_text
from puna.jobs.healing import Healed, heal
from puna.jobs.load import load
from puna.jobs.peak import PeakMemory
from puna.jobs.run_folder import open_run
from puna.model.llama import Llama
from puna.text.corpus import cut_documents, read_documents
from puna.training.config import TrainingConfig
from puna.training.step import Loss

WINDOW, PIECE = 512, 1 << 12


def judging_parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that `Judged` reads."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--judged", type=int, default=200_000)
    return parser


class Judged:
    """A model, what judges it, and pieces of the texts that things are fitted to, by text; windows are drawn evenly from them."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.loaded = load(given.model)
        self.model = self.loaded.llama
        self._judge = given.judge.read_text(encoding="utf-8")[: given.judged]
        self._before = evaluate_text(self.model, self.loaded.tokenizer, self._judge)
        self.pieces = [self._pieces(path) for path in given.text]
        each = -(-given.windows // len(given.text))
        self.windows: list[Tensor] = [
            torch.tensor(ids)[None, :WINDOW] for pieces in self.pieces for ids in pieces[-each:]
        ]

    def added(self, model: Llama, digits: int = 5) -> dict[str, float]:
        """Nats that a changed model adds, and their interval."""
        found = added_nats(self._before, evaluate_text(model, self.loaded.tokenizer, self._judge))
        figures = {"added": found.mean, "low": found.low, "high": found.high}
        return {name: round(value, digits) for name, value in figures.items()}

    def _pieces(self, path: Path) -> list[list[int]]:
        """Ids of a text's pieces, in a seeded order."""
        pieces = [document.text for document in cut_documents(read_documents([path]).documents, PIECE)]
        random.Random(0).shuffle(pieces)
        return [self.loaded.tokenizer.encode(piece, bos=True) for piece in pieces[:2000]]


def heal_in_passing(
    model: Llama, dense: Llama, documents: Sequence[Sequence[int]], config: TrainingConfig, loss: Loss | None = None
) -> Healed:
    """`heal` in a run folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as temporary, open_run(Path(temporary) / "run", config, resume=False) as folder:
        return heal(model, dense, documents, config, folder, peak=PeakMemory(torch.device("cpu")), go_on="", loss=loss)
