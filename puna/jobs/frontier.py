"""One model made smaller in several ways: size and speed against added nats, all judged on the same text.

Each trial is a copy that shares every tensor which is not replaced. The two-sided statistics hold what every method
needs; one decomposition of a method, and one measurement of what its matrices cost the model, serve all its sizes, so
that a further size costs its judging alone. `puna compress` measures those costs at its own size: elsewhere than at the
60 % where they were measured here its ranks differ a little.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from puna.compression.healing import shared_copy
from puna.compression.low_rank import Spectrum
from puna.compression.rounding import round_linears
from puna.compression.sizes import stored_bytes
from puna.compression.statistics import collect_two_sided_statistics
from puna.evaluation.agreement import Difference, added_nats
from puna.evaluation.perplexity import Likelihood, evaluate_text
from puna.files import write_text
from puna.jobs.calibration import WINDOW, calibration_texts, calibration_windows
from puna.jobs.compress import refuse_compressed
from puna.jobs.factoring import (
    Allocation,
    Factored,
    Method,
    decompose_by,
    decompositions,
    factorise,
    measured_costs,
    usual_allocation,
)
from puna.jobs.frontier_recipe import FrontierRecipe
from puna.jobs.frontier_report import write_frontier_report
from puna.jobs.frontier_result import (
    Ablated,
    FrontierPoint,
    FrontierResult,
    Original,
    command_for,
    frontier_command,
    recommend,
)
from puna.jobs.frontier_training import trained_beside
from puna.jobs.load import find_model, load
from puna.jobs.machine import choose_device
from puna.jobs.peak import PeakMemory
from puna.jobs.run_folder import open_run
from puna.jobs.speeds import measure_speeds
from puna.model.llama import Llama
from puna.report.labels import check_language
from puna.report.numbers import human_percent
from puna.tokens.tokenizer import Tokenizer
from puna.weights.headers import read_stored

__all__ = ["Compressed", "Setting", "ablation_settings", "compare", "frontier_settings", "measure_frontier"]

_KEEPS = (0.9, 0.8, 0.7, 0.6, 0.4)
_ABLATED_KEEP = 0.6
_ABLATION: tuple[tuple[Method, Allocation], ...] = (
    ("svd", "uniform"),
    ("asvd", "uniform"),
    ("whitened", "uniform"),
    ("kfac", "uniform"),
    ("kfac", "greedy"),
    ("auto", "greedy"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """One way of making a model smaller, and its price on held-out text; 95 % interval, paired over windows."""

    method: str
    keep: float | None
    bytes: int
    added_nats: float
    low: float
    high: float
    ranks: dict[str, int]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a trial does; without a method, int8."""

    method: Method | None = None
    allocation: Allocation = "uniform"
    keep: float = 1.0

    @property
    def name(self) -> str:
        """`kfac greedy 60 %`, `int8`."""
        return "int8" if self.method is None else f"{self.method} {self.allocation} {human_percent(self.keep)}"


_INT8 = Setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A smaller copy, judged."""

    model: Llama
    factored: Factored | None
    difference: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """The model that copies are made of, and what judges them."""

    model: Llama
    tokenizer: Tokenizer
    before: Likelihood
    texts: Sequence[str]

    def judge(
        self, setting: Setting, spectra: Mapping[str, Spectrum], costs: Mapping[str, float] | None = None
    ) -> _Trial:
        """Make one copy smaller and measure what that costs. Args: spectra, costs: of the setting's method."""
        smaller, factored = shared_copy(self.model), None
        if setting.method is None:
            round_linears(smaller, "int8")
        else:
            factored = factorise(smaller, setting.method, setting.keep, setting.allocation, (), spectra, costs)
        difference = added_nats(self.before, evaluate_text(smaller, self.tokenizer, *self.texts))
        return _Trial(model=smaller, factored=factored, difference=difference)


def measure_frontier(
    recipe: FrontierRecipe,
    out: Path,
    *,
    device: str = "auto",
    on_progress: Callable[[float, str], None] | None = None,
    observers: tuple[Callable[[Any], None], ...] = (),
    lang: str = "en",
) -> FrontierResult:
    """Try several sizes and methods, write `out`/report.html and `out`/frontier.json, and no model.

    Args:   on_progress: is given the share of the trials that are done, and what comes next. observers: of healing.
            lang: the report's.
    Errors: UsageError, BadData, CheckpointMismatch, DiskFull, FormatError, RunLocked.
    """
    check_language(lang)
    started, place = time.monotonic(), choose_device(device)
    source = find_model(recipe.model)
    read_stored(source).model.require_llama(source)
    with open_run(out, recipe, resume=True) as folder:
        peak = PeakMemory(place)
        loaded = load(source, device=place)
        refuse_compressed(loaded.llama, source)
        fitting, judging = calibration_texts(recipe)
        windows = calibration_windows(loaded.tokenizer, fitting, min(WINDOW, loaded.llama.config.max_seq_len))
        before = evaluate_text(loaded.llama, loaded.tokenizer, *judging)
        judge = _Judge(model=loaded.llama, tokenizer=loaded.tokenizer, before=before, texts=judging)
        shown, ablation = frontier_settings(recipe.method), ablation_settings(recipe.method)
        trials = _try_all(judge, windows, shown, ablation, on_progress)
        original, points = _measured(judge, {setting: trials[setting] for setting in shown})
        best = recommend(points, original.bytes)
        rows = [_ablated(setting, trials[setting]) for setting in ablation]
        rows += _trained(recipe, judge, trials, fitting, out, peak, observers, lang)
        result = FrontierResult(
            original=original,
            frontier=points,
            recommended=best,
            command=None if best is None else command_for(recipe, best, out, lang),
            ablation=rows,
            seconds=time.monotonic() - started,
            peak_bytes=peak.growth_bytes(),
            report=str(folder.report),
        )
        pictured = {point.name: trials[setting].factored for setting, point in zip(shown, points, strict=True)}
        write_frontier_report(folder, result, pictured, lang)
        write_text(out / "frontier.json", json.dumps(asdict(result), indent=1) + "\n")
    return result


def compare(
    model: Llama,
    tokenizer: Tokenizer,
    windows: Sequence[Tensor],
    before: Likelihood,
    texts: Sequence[str],
    keeps: Sequence[float],
) -> list[Compressed]:
    """Plain and whitened SVD at several sizes, and int8: each on a copy of the model, all judged on the same texts."""
    judge = _Judge(model=model, tokenizer=tokenizer, before=before, texts=texts)
    results = []
    methods: tuple[Method, ...] = ("svd", "whitened")
    for method in methods:
        spectra = dict(decompositions(model, method, windows))
        for keep in keeps:
            setting = Setting(method, "uniform", keep)
            results.append(_compressed(setting, judge.judge(setting, spectra)))
    return [*results, _compressed(_INT8, judge.judge(_INT8, {}))]


def frontier_settings(method: Method) -> list[Setting]:
    """What is drawn: the method at every size, beside auto the published baseline, and int8."""
    methods: tuple[Method, ...] = ("auto", "whitened") if method == "auto" else (method,)
    return [*(Setting(each, usual_allocation(each), keep) for each in methods for keep in _KEEPS), _INT8]


def ablation_settings(method: Method) -> list[Setting]:
    """What auto is taken apart into; nothing for a method by its name."""
    return [Setting(each, allocation, _ABLATED_KEEP) for each, allocation in _ABLATION] if method == "auto" else []


def _try_all(
    judge: _Judge,
    windows: Sequence[Tensor],
    shown: Sequence[Setting],
    also: Sequence[Setting],
    on_progress: Callable[[float, str], None] | None,
) -> dict[Setting, _Trial]:
    """Every setting once, those of a method after one another so that only its decompositions are held."""
    wanted = sorted(dict.fromkeys([*shown, *also]), key=lambda setting: setting.method or "")
    statistics = collect_two_sided_statistics(judge.model, windows)
    trials: dict[Setting, _Trial] = {}
    for method, settings in groupby(wanted, key=lambda setting: setting.method):
        spectra = {} if method is None else dict(decompose_by(judge.model, method, statistics))
        costs: dict[str, float] | None = None
        for setting in settings:
            if on_progress is not None:
                on_progress(len(trials) / len(wanted), setting.name)
            if costs is None and setting.method is not None and setting.allocation == "greedy":
                costs = measured_costs(judge.model, setting.method, spectra, windows, _ABLATED_KEEP)
            trial = judge.judge(setting, spectra, costs)
            trials[setting] = trial if setting in shown else replace(trial, model=judge.model)  # the copy goes
    if on_progress is not None:
        on_progress(1.0, "speeds")
    return trials


def _measured(judge: _Judge, trials: Mapping[Setting, _Trial]) -> tuple[Original, list[FrontierPoint]]:
    """The speeds of all, measured in turns, beside their sizes and what they add."""
    prompt = [each for text in judge.texts for each in judge.tokenizer.encode(text, bos=True)]
    first, *rest = measure_speeds([judge.model, *(trial.model for trial in trials.values())], prompt)
    whole = stored_bytes(judge.model)
    original = Original(bytes=whole, nats_per_token=judge.before.nats_per_token, **asdict(first))
    points = []
    for (setting, trial), speed in zip(trials.items(), rest, strict=True):
        known = asdict(_compressed(setting, trial))
        points.append(FrontierPoint(**known, share=known["bytes"] / whole, **asdict(speed)))
    return original, points


def _compressed(setting: Setting, trial: _Trial) -> Compressed:
    return Compressed(
        method=setting.method or "int8",
        keep=None if setting.method is None else setting.keep,
        bytes=stored_bytes(trial.model),
        added_nats=trial.difference.mean,
        low=trial.difference.low,
        high=trial.difference.high,
        ranks={} if trial.factored is None else trial.factored.ranks,
    )


def _trained(
    recipe: FrontierRecipe,
    judge: _Judge,
    trials: Mapping[Setting, _Trial],
    texts: Sequence[str],
    out: Path,
    peak: PeakMemory,
    observers: tuple[Callable[[Any], None], ...],
    lang: str,
) -> Iterator[Ablated]:
    """The method at the ablation's size, healed, and built from scratch; nothing where no healing is asked for."""
    if recipe.healing is None:
        return
    setting = Setting(recipe.method, usual_allocation(recipe.method), _ABLATED_KEEP)
    if recipe.method != "auto":
        yield _ablated(setting, trials[setting])
    documents = [judge.tokenizer.encode(text, bos=True) for text in texts]
    smaller, config = trials[setting].model, recipe.healing
    for name, model in trained_beside(
        smaller,
        judge.model,
        documents,
        config,
        out,
        peak=peak,
        go_on=frontier_command(recipe, out),
        observers=observers,
        lang=lang,
    ):
        difference = added_nats(judge.before, evaluate_text(model, judge.tokenizer, *judge.texts))
        yield _ablated(setting, replace(trials[setting], difference=difference), name)


def _ablated(setting: Setting, trial: _Trial, training: Literal["none", "healing", "scratch"] = "none") -> Ablated:
    assert setting.method is not None
    found = trial.difference
    return Ablated(
        method=setting.method, allocation=setting.allocation, training=training, keep=setting.keep,
        added_nats=found.mean, low=found.low, high=found.high,
    )  # fmt: skip
