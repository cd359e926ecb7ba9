"""The levers of a compression, pulled one after another on one model: each judged on the same text when it is done."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from puna.compression.sizes import stored_bytes
from puna.evaluation.agreement import added_nats
from puna.evaluation.perplexity import Likelihood, evaluate_text
from puna.model.llama import Llama
from puna.planning.counting import kv_cache_bytes_per_token
from puna.report.labels import label
from puna.report.numbers import human_bytes
from puna.report.page import Section, Table
from puna.tokens.tokenizer import Tokenizer

__all__ = ["Judge", "Lever", "LeverName", "cache_bytes", "levers_section"]

LeverName = Literal["kv_heads", "low_rank", "embeddings", "healing", "bits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """The model after a lever and those before it: its bytes, those of its cache for each token in the type of its norms, and
    the nats per token that all of them together add; 95 % interval, paired over windows.
    """

    name: LeverName
    bytes: int
    cache_bytes_per_token: int
    added_nats: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A model that is changed in place, how likely it found the judging texts before, and what became of that."""

    model: Llama
    tokenizer: Tokenizer
    texts: Sequence[str]
    before: Likelihood
    levers: list[Lever] = field(default_factory=list)

    def add(self, name: LeverName) -> None:
        """Judge the model after a lever."""
        difference = added_nats(self.before, evaluate_text(self.model, self.tokenizer, *self.texts))
        self.levers.append(
            Lever(
                name=name,
                bytes=stored_bytes(self.model),
                cache_bytes_per_token=cache_bytes(self.model),
                added_nats=difference.mean,
                low=difference.low,
                high=difference.high,
            )
        )


def cache_bytes(model: Llama) -> int:
    """Keys and values of one token, in the type that the model computes in."""
    return kv_cache_bytes_per_token(model.config, model.dtype.itemsize)


def levers_section(lang: str, levers: Sequence[Lever]) -> Section:
    """What each lever gave and cost, in the order in which they were pulled."""
    columns = tuple(
        label(lang, f"pulled.column.{name}") for name in ("lever", "bytes", "cache", "added", "interval", "more")
    )
    rows, last = [], 0.0
    for lever in levers:
        rows.append(
            (
                label(lang, f"pulled.{lever.name}"),
                human_bytes(lever.bytes),
                human_bytes(lever.cache_bytes_per_token),
                f"{lever.added_nats:.4f}",
                f"{lever.low:.4f} … {lever.high:.4f}",
                f"{lever.added_nats - last:+.4f}",
            )
        )
        last = lever.added_nats
    table = Table(columns=columns, rows=rows, caption=label(lang, "pulled.caption"))
    return Section(title=label(lang, "pulled.title"), words=(label(lang, "pulled.words"),), items=(table,))
