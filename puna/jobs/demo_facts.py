"""What the demo found out: everything that its report shows."""

import math
from dataclasses import dataclass
from pathlib import Path

from puna.evaluation.perplexity import Likelihood
from puna.generation.decode import Completion
from puna.jobs.adapt_report import AdaptResult
from puna.jobs.frontier import Compressed
from puna.jobs.merging import MergeResult
from puna.jobs.train import TrainResult
from puna.jobs.train_recipe import TrainRecipe
from puna.report.labels import label

__all__ = ["DemoFacts", "Sample", "Scores", "TextFacts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """The text it learned from; names are keys of labels."""

    name: str
    second_name: str
    folder: str
    documents: int
    bytes: int
    duplicates: int
    held_out: int
    bytes_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Bits per byte of the same held-out text under the model and two models without context."""

    bits_per_byte: float
    token_unigram: float
    byte_unigram: float
    nats_per_token: float
    bytes_per_token: float

    def nats(self, bits_per_byte: float) -> float:
        """The same price in nats per token."""
        return bits_per_byte * self.bytes_per_token * math.log(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt and what a model made of it."""

    prompt: str
    completion: Completion
    temperature: float
    is_adapted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFacts:
    """Everything that the report shows. adapt_numbers: new text before and after, old text before and after."""

    lang: str
    seed: int
    text: TextFacts
    train: TrainResult
    recipe: TrainRecipe
    train_tokens: int
    metrics: Path
    scores: Scores
    adapt: AdaptResult
    adapt_rank: int
    adapt_numbers: tuple[Likelihood, Likelihood, Likelihood, Likelihood]
    merge: MergeResult
    compress: list[Compressed]
    samples: list[Sample]
    steps: list[tuple[str, float]]
    seconds: float
    out: Path

    def say(self, key: str, **values: object) -> str:
        """A label in the report's language."""
        return label(self.lang, key, **values)

    def name(self, key: str) -> str:
        """What a kind of text is called."""
        return self.say(key, folder=self.text.folder) if key == "text.folder" else self.say(key)
