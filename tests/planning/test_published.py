"""Peaks that other programs publish, beside the plan: met within a tenth, or the difference has a reason and stays as it is.

Sources, all of the programs' own pages:
  unsloth context     docs "Unsloth Benchmarks" and README, longest row by card: QLoRA of all Linears, rank 32, batch 1. Layer
                      inputs wait in host memory, and the loss forms no logits: the plan without them. A card's GB are GiB.
  unsloth minimum     docs "Unsloth Requirements", "absolute minimum" by size; no length, batch or rank is given: 512, 1, 16.
  llama-factory wiki  "Performance comparison", April 2024, Llama 2 7B, rank 8 on all Linears, whole GB.
  llama-factory table README, "Hardware Requirement", "estimated"; no length or batch is given: 1024, 1.
torchtune's stand in test_memory.py.
"""

from dataclasses import dataclass
from itertools import pairwise

import pytest

from puna.arch.presets import PRESETS
from puna.planning.counting import parameter_count
from puna.planning.memory import peak_memory
from puna.planning.settings import ADAM_8BIT, ADAM_FLOAT32, AdamBytes, FullTraining, LoraTraining, Settings

GIB = 2**30
SHORT = "a 16-bit LoRA holds 2 bytes a weight; the figure has 2.3 to 2.8, the wiki's measured 7B has 2.4"
RULE = "a rule of thumb of 18, 8, 2, 1 or 1/2 bytes a parameter, rounded up, and here of 14 B for 13 B"


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One published figure. why: the reason where the plan is not within a tenth, at `ratio` of it then."""

    source: str
    model: str
    gb: float
    base: str = "nf4"
    seq: int = 1024
    batch: int = 1
    rank: int = 8
    adam: AdamBytes = ADAM_FLOAT32
    loss: str = "chunked"
    away: bool = False  # the layers' inputs wait in host memory
    logit_bytes: int = 0  # more than the plan's 10 for each logit
    full: str = ""  # how many bytes a parameter full training holds
    unit: int = 10**9
    why: str = ""
    ratio: float = 1.0


def context(model: str, gb: int, seq: int) -> Peak:
    return Peak(source="unsloth context", model=model, gb=gb, seq=seq, rank=32, adam=ADAM_8BIT, away=True, unit=GIB)


def minimum(model: str, gb: float, base: str = "nf4", why: str = "", ratio: float = 1.0) -> Peak:
    return Peak(
        source="unsloth minimum", model=model, gb=gb, base=base, seq=512, rank=16, adam=ADAM_8BIT, unit=GIB, why=why,
        ratio=ratio,
    )  # fmt: skip


def wiki(gb: int, seq: int, **given) -> Peak:
    return Peak(source="llama-factory wiki", model="llama-2-7b", gb=gb, seq=seq, **given)


def table(model: str, gb: int, base: str, ratio: float = 1.0, full: str = "") -> Peak:
    return Peak(
        source="llama-factory table", model=model, gb=gb, base=base, full=full, why="" if ratio == 1 else RULE, ratio=ratio
    )  # fmt: skip


OLD_HF = {"loss": "naive", "logit_bytes": 8}  # the logits shifted and made contiguous, and their softmax, in float32
OLD_UNSLOTH = {"loss": "naive", "away": True}
EIGHT, SEVENTY, SEVEN, THIRTEEN = "llama-3.1-8b", "llama-3.1-70b", "llama-2-7b", "llama-2-13b"
LONGEST = ((8, 2_972), (12, 21_848), (16, 40_724), (24, 78_475), (40, 153_977), (48, 191_728), (80, 342_733))
PUBLISHED = (
    *(context(EIGHT, gb, seq) for gb, seq in LONGEST),
    *(context(SEVENTY, gb, seq) for gb, seq in ((48, 12_106), (80, 89_389))),
    minimum("llama-3.2-3b", 3.5),
    minimum(SEVEN, 5),
    minimum(EIGHT, 6, why="states and workspaces alone are 6.2 GiB; the same page's context table has 8", ratio=1.16),
    minimum(SEVENTY, 41),
    minimum("llama-3.2-3b", 8, "bfloat16"),
    minimum(SEVEN, 19, "bfloat16", SHORT, 0.72),
    minimum(EIGHT, 22, "bfloat16", SHORT, 0.75),
    minimum(SEVENTY, 164, "bfloat16", SHORT, 0.82),
    wiki(17, 1024, base="bfloat16", batch=4, loss="naive"),
    wiki(16, 1024, base="bfloat16", batch=4),
    wiki(7, 1024, batch=4),
    *(wiki(gb, seq, **OLD_HF) for gb, seq in ((6, 1024), (7, 2048), (9, 4096), (12, 8192), (19, 16_384), (32, 32_768))),
    *(wiki(gb, seq, **OLD_UNSLOTH) for gb, seq in ((5, 1024), (8, 8192), (10, 16_384), (16, 32_768), (25, 65_536))),
    wiki(6, 2048, **OLD_UNSLOTH, why="whole GB: 5.5 would do", ratio=0.896),
    wiki(7, 4096, **OLD_UNSLOTH, why="whole GB: 6.5 would do", ratio=0.86),
    wiki(37, 100_000, **OLD_UNSLOTH),
    table(SEVEN, 120, "bfloat16", full="mixed"),
    table(SEVEN, 60, "bfloat16", full="pure"),
    table(SEVEN, 16, "bfloat16"),
    table(SEVEN, 10, "int8", 0.85),
    table(SEVEN, 6, "nf4", 0.89),
    table(THIRTEEN, 32, "bfloat16", 0.87),
    table(THIRTEEN, 20, "int8", 0.76),
    table(THIRTEEN, 12, "nf4", 0.75),
    table("llama-1-33b", 64, "bfloat16"),
    table("llama-1-33b", 40, "int8", 0.897),
    table("llama-1-33b", 24, "nf4", 0.85),
    table("llama-2-70b", 1200, "bfloat16", full="mixed"),
    table("llama-2-70b", 600, "bfloat16", full="pure"),
    table("llama-2-70b", 160, "bfloat16", 0.89),
    table("llama-2-70b", 80, "int8"),
    table("llama-2-70b", 48, "nf4", 0.85),
)


def planned(peak: Peak) -> int:
    """The plan of what was measured, checkpointed as all of them are."""
    config = PRESETS[peak.model].config
    method = FullTraining() if peak.full else LoraTraining(rank=peak.rank, adam=peak.adam)
    settings = Settings(
        method=method, seq=peak.seq, batch=peak.batch, base=peak.base, loss=peak.loss, checkpointing=True
    )
    tokens = settings.tokens
    away = 2 * config.n_layers * config.dim * tokens if peak.away else 0
    master = 8 * parameter_count(config) if peak.full == "pure" else 0  # no float32 master, moments in 16 bits
    more = peak.logit_bytes * config.vocab_size * tokens
    return peak_memory(config, settings).total - away - master + more


def test_none_is_missing_and_most_are_met() -> None:
    assert len({peak.source for peak in PUBLISHED}) == 4
    assert len(PUBLISHED) > 40
    assert sum(not peak.why for peak in PUBLISHED) >= 30


@pytest.mark.parametrize("peak", PUBLISHED, ids=lambda peak: f"{peak.source}-{peak.model}-{peak.base}-{peak.gb}GB")
def test_a_published_peak_is_met_or_its_difference_explained(peak: Peak) -> None:
    ratio = planned(peak) / (peak.gb * peak.unit)
    if peak.why:
        assert ratio == pytest.approx(peak.ratio, abs=0.015)
        assert not 0.9 <= ratio <= 1.1, "met: it needs no reason"
    else:
        assert 0.9 <= ratio <= 1.1


def test_a_token_more_costs_what_a_card_holds_more() -> None:
    """The slope of the longest rows: the tensors of one layer, with every layer's input elsewhere."""
    longest = [peak for peak in PUBLISHED if peak.source == "unsloth context" and peak.model == EIGHT]
    for small, large in pairwise(longest[1:]):
        published = GIB * (large.gb - small.gb) / (large.seq - small.seq)
        assert (planned(large) - planned(small)) / (large.seq - small.seq) == pytest.approx(published, rel=0.01)
