"""Every method of low rank against stored bits: added nats, in its own domain and in another, on three calibration samples.

    python bench/compress.py MODEL TEXT [--judge TEXT] [--other TEXT] [--keeps 0.9 0.8 0.7 0.6 0.4] [--samples 3] [--windows 64]
                             [--judged 200000] [--every-setting] [--arms NAME...]
                             [--heal SECONDS] [--heal-keeps 0.6 0.4] [--heal-samples 3] [--healing-rate 1e-3]

The text of --judge judges, or TEXT's last fifth; a sample is so many windows of 512 tokens drawn from the rest, no window
in two samples. All arms use the same windows. The published baseline, SVD-LLM's whitened truncation, is the best of three
dampings in float64, by what it adds on the judging text, which favours it. --every-setting: the two-sided arms with the
text's own labels and with less damping as well. --arms: only those whose names begin so. Healing learns from the whole of
what samples are drawn from, as `puna compress --heal` does: the factors, and a LoRA beside them, from the same start. Prints
a line of JSON for each sample, share and arm: stored share of the block Linears, added nats with their 95 % interval paired
over windows; then a table of means over the samples, with their ratios to the baseline's.
"""

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from judging import heal_in_passing
from torch import Tensor

from puna.adaptation.targets import attach
from puna.arch.modules import LINEARS
from puna.compression.healing import shared_copy, train_factors
from puna.compression.low_rank import Damping, Spectrum, decompose_groups, decompose_linears
from puna.compression.sizes import linear_bytes
from puna.compression.statistics import Labels, TwoSidedStatistics, collect_two_sided_statistics
from puna.evaluation.agreement import added_nats
from puna.evaluation.perplexity import Likelihood, evaluate_text
from puna.jobs.factoring import Allocation, Method, decompose_by, factorise, measured_costs
from puna.jobs.load import LoadedModel, load
from puna.model.linears.adapter import LoraSettings
from puna.model.llama import Llama
from puna.text.corpus import cut_documents, read_documents
from puna.training.config import TimeBudget, TrainingConfig

WINDOW, PIECE = 512, 1 << 14
BASELINE_DAMPINGS = (0.0, 1e-4, 1e-2)
LABELS: tuple[Labels, ...] = ("sampled", "data")
DAMPINGS = (Damping(inputs=0.1, gradients=0.3), Damping(inputs=0.01, gradients=0.03))
BASELINE, HEALED = "svd-llm", "+ groups (sampled, 0.1/0.3)"
LORA = LoraSettings(rank=8, alpha=16.0, targets=LINEARS)  # SVD-LLM's own healing


@dataclass(frozen=True, slots=True)
class Arm:
    """A way of making the model smaller: decompositions, what the model pays for them, and how ranks are shared out."""

    name: str
    method: Method
    allocation: Allocation
    spectra: Mapping[str, Spectrum]


@dataclass(frozen=True, slots=True)
class Texts:
    """What judges, and what samples are drawn from."""

    own: list[str]
    other: list[str]
    windows: list[Tensor]


def read_texts(loaded: LoadedModel, path: Path, judge: Path | None, other: Path | None, judged: int) -> Texts:
    """What judges, by default the last fifth of the text, is at most so many characters; of the other text as many."""
    pieces = _pieces(path)
    cut = len(pieces) - max(1, len(pieces) // 5) if judge is None else len(pieces)
    own = pieces[cut:] if judge is None else _pieces(judge)
    windows = [
        part[None]
        for piece in pieces[:cut]
        for part in torch.tensor(loaded.tokenizer.encode(piece, bos=True)).split(WINDOW)
        if len(part) == WINDOW
    ]
    foreign = [] if other is None else _pieces(other)
    return Texts(own=_first(own, judged), other=_first(foreign, judged), windows=windows)


def _pieces(path: Path) -> list[str]:
    return [document.text for document in cut_documents(read_documents([path]).documents, PIECE)]


def _first(pieces: Sequence[str], characters: int) -> list[str]:
    kept, room = [], characters
    for piece in pieces:
        if room > 0:
            kept.append(piece[:room])
            room -= len(piece)
    return kept


def arms(model: Llama, windows: Sequence[Tensor], settings: int) -> Iterator[Arm]:
    """One at a time: what is decomposed is dropped before the next. settings: how many labels and dampings."""
    found = {labels: collect_two_sided_statistics(model, windows, labels=labels) for labels in LABELS[:settings]}
    sampled = found["sampled"]
    yield Arm("svd", "svd", "uniform", dict(decompose_by(model, "svd", sampled)))
    yield Arm("asvd", "asvd", "uniform", dict(decompose_by(model, "asvd", sampled)))
    for share in BASELINE_DAMPINGS:
        spectra = dict(decompose_linears(model, sampled.grams, damping=Damping(inputs=share, gradients=0.0)))
        yield Arm(f"{BASELINE} {share:g}", "whitened", "uniform", spectra)
    for labels, statistics in found.items():
        for damping in DAMPINGS[:settings]:
            yield from _two_sided(model, statistics, damping, f"{labels}, {damping.inputs:g}/{damping.gradients:g}")


def _two_sided(model: Llama, found: TwoSidedStatistics, damping: Damping, name: str) -> Iterator[Arm]:
    spectra = dict(decompose_linears(model, found.grams, found.gradients, damping))
    yield Arm(f"kfac ({name})", "kfac", "uniform", spectra)
    yield Arm(f"+ greedy ({name})", "kfac", "greedy", spectra)
    yield Arm(
        f"+ groups ({name})", "auto", "greedy", dict(decompose_groups(model, found.grams, found.gradients, damping))
    )


class Bench:
    """One model, judged before and after."""

    def __init__(self, loaded: LoadedModel, texts: Texts, settings: int, arms: Sequence[str]) -> None:
        self.loaded, self.texts, self.settings, self.arms = loaded, texts, settings, tuple(arms)
        self.before = self._judge(loaded.llama)
        self.stored = linear_bytes(loaded.llama)

    def _judge(self, model: Llama) -> dict[str, Likelihood]:
        judges = {"own": self.texts.own, "other": self.texts.other}
        return {name: evaluate_text(model, self.loaded.tokenizer, *texts) for name, texts in judges.items() if texts}

    def facts(self, model: Llama, arm: str, keep: float, sample: int) -> dict[str, object]:
        """A line: what this smaller model stores and adds."""
        facts: dict[str, object] = {
            "sample": sample,
            "keep": keep,
            "arm": arm,
            "stored": linear_bytes(model) / self.stored,
        }
        for name, after in self._judge(model).items():
            added = added_nats(self.before[name], after)
            facts |= {
                name: round(added.mean, 5),
                f"{name}_low": round(added.low, 5),
                f"{name}_high": round(added.high, 5),
            }
        return facts

    def sample(
        self,
        windows: Sequence[Tensor],
        keeps: Sequence[float],
        number: int,
        healing: TrainingConfig | None,
        healed: Sequence[float],
    ) -> Iterator[dict[str, object]]:
        """Every arm at every share, and one of them healed, its factors or a LoRA beside them."""
        model = self.loaded.llama
        for arm in arms(model, windows, self.settings):
            for keep in keeps if arm.name.startswith(self.arms) else ():
                smaller, costs = shared_copy(model), None
                if arm.allocation == "greedy":
                    costs = measured_costs(smaller, arm.method, arm.spectra, windows, keep)
                factorise(smaller, arm.method, keep, arm.allocation, windows, arm.spectra, costs)
                yield self.facts(smaller, arm.name, keep, number)
                if healing is not None and keep in healed and arm.name == HEALED:
                    cut = copy.deepcopy(smaller)
                    train_factors(smaller)
                    self._heal(smaller, healing)
                    yield self.facts(smaller, "+ healing of the factors", keep, number)
                    attach(cut, LORA, seed=0)
                    self._heal(cut, healing)
                    yield self.facts(cut, "+ healing by LoRA", keep, number)

    def _heal(self, smaller: Llama, healing: TrainingConfig) -> None:
        documents = [window[0].tolist() for window in self.texts.windows]
        done = heal_in_passing(smaller, self.loaded.llama, documents, healing)
        print(json.dumps({"healed": done.steps, "best": done.step, "kl": [done.kl_before, done.kl_after]}), flush=True)


def table(lines: Sequence[Mapping[str, object]]) -> None:
    """Means over samples, and ratios to the better of the baseline's dampings, in both domains."""
    keeps = sorted({float(str(line["keep"])) for line in lines}, reverse=True)
    for domain in ("own", "other"):
        found: dict[tuple[str, float], list[float]] = {}
        for line in lines:
            if domain in line:
                found.setdefault((str(line["arm"]), float(str(line["keep"]))), []).append(float(str(line[domain])))
        means = {key: mean(values) for key, values in found.items()}
        if not means:
            continue
        baseline = {key: value for key, value in means.items() if key[0].startswith(BASELINE)}
        best = {
            keep: min((value for (_, at), value in baseline.items() if at == keep), default=math.nan) for keep in keeps
        }
        print(f"\n{domain}: " + ", ".join(f"keep {keep:g}" for keep in keeps))
        for arm in dict.fromkeys(arm for arm, _ in means):
            cells = [(means[arm, keep], means[arm, keep] / best[keep]) for keep in keeps if (arm, keep) in means]
            print(f"{arm:36}" + " | ".join(f"{value:.4f} ({ratio:.2f})" for value, ratio in cells))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.6, 0.4])
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--judged", type=int, default=200_000)
    parser.add_argument("--every-setting", action="store_true")
    parser.add_argument("--arms", nargs="+", default=[""])
    parser.add_argument("--heal", type=float)
    parser.add_argument("--heal-samples", type=int, default=3)
    parser.add_argument("--heal-keeps", type=float, nargs="+", default=[0.6, 0.4])
    parser.add_argument("--healing-rate", type=float, default=1e-3)
    given = parser.parse_args()
    loaded = load(given.model)
    texts = read_texts(loaded, given.text, given.judge, given.other, given.judged)
    drawn = random.Random(0).sample(texts.windows, min(len(texts.windows), given.samples * given.windows))
    healing = None if given.heal is None else TrainingConfig(
        budget=TimeBudget(seconds=given.heal), batch=8, micro_batch=8, seq=WINDOW, learning_rate=given.healing_rate,
        weight_decay=0.0, validate_every=25, checkpoint_every=25,
    )  # fmt: skip
    bench, lines = Bench(loaded, texts, 2 if given.every_setting else 1, given.arms), []
    for number in range(given.samples):
        started, windows = time.monotonic(), drawn[number :: given.samples]
        healed = given.heal_keeps if number < given.heal_samples else ()
        for facts in bench.sample(windows, given.keeps, number, healing, healed):
            lines.append(facts)
            print(json.dumps(facts), flush=True)
        print(
            json.dumps({"sample": number, "windows": len(windows), "seconds": round(time.monotonic() - started)}),
            flush=True,
        )
    table(lines)


if __name__ == "__main__":
    main()
