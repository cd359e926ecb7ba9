"""The settings of a study, checked at construction."""

import math
from dataclasses import dataclass
from pathlib import Path

from puna.arch.config import ModelConfig
from puna.errors import UsageError
from puna.lab.studies import find_study
from puna.lab.study import Study

__all__ = ["LabRecipe", "base_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabRecipe:
    """A study and how much of it.

    seconds: for the whole study, all arms and seeds; the steps of an arm are what fits.
    learning_rates: each is tried on the first seed, the best of an arm is kept; empty: the study's own.
    text: a file or folder to learn from; None: the standard library of the Python that runs this.
    dim, n_layers: of the base model, whose heads are 32 wide and share key-value heads in threes or twos.
    least_steps: a study whose arms would take fewer is refused.
    """

    study: str
    seconds: float = 2400.0
    seeds: int = 3
    learning_rates: tuple[float, ...] = ()
    text: Path | None = None
    batch: int = 8
    seq: int = 256
    dim: int = 192
    n_layers: int = 6
    vocab_size: int = 2048
    least_steps: int = 100

    def __post_init__(self) -> None:
        find_study(self.study)
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"seconds: expected more than 0, got {self.seconds}", "2400 is a good beginning")
        for name in ("seeds", "batch", "least_steps", "n_layers"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not all(0 < rate < math.inf for rate in self.learning_rates):
            raise UsageError(f"learning_rates: expected rates above 0, got {self.learning_rates}", "1e-3 is usual")
        if self.seq < 64 or self.seq % 4:
            raise UsageError(f"seq: expected a multiple of 4 from 64 on, got {self.seq}", "256 is usual")
        if self.dim % 64 or self.heads // 2 % max(1, self.kv_heads // 2):
            raise UsageError(
                f"dim: expected 64, 128, 192, 256, 384 or another width whose heads can be halved, got {self.dim}",
                "heads are 32 wide and share key-value heads in threes or twos; some arms are half as wide",
            )
        if self.vocab_size < 300:
            raise UsageError(f"vocab_size: expected at least 300, got {self.vocab_size}", "256 of them are the bytes")

    @property
    def heads(self) -> int:
        """Of the base model, 32 wide each."""
        return self.dim // 32

    @property
    def kv_heads(self) -> int:
        """A third of them where that is whole, else half."""
        return self.heads // 3 if self.heads % 3 == 0 else self.heads // 2

    def rates(self, study: Study) -> tuple[float, ...]:
        """Those that are tried."""
        return self.learning_rates or tuple(study.rates)


def base_model(recipe: LabRecipe, vocab_size: int) -> ModelConfig:
    """A small Llama whose context is four times the rows it is trained on. Args: vocab_size: the tokenizer's."""
    return ModelConfig(
        vocab_size=vocab_size,
        dim=recipe.dim,
        n_layers=recipe.n_layers,
        n_heads=recipe.heads,
        n_kv_heads=recipe.kv_heads,
        head_dim=32,
        ffn_dim=8 * recipe.dim // 3,
        max_seq_len=4 * recipe.seq,
        rope_theta=10_000.0,
        tied_embeddings=True,
    )
