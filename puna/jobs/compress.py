"""Compression: fewer or shorter numbers for the same model, and what that costs in nats on text it was not fitted to."""

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from puna.compression.allocation import uniform_ranks
from puna.compression.low_rank import Spectrum, compress_low_rank
from puna.compression.rounding import quantize_int8
from puna.errors import BadData, UsageError
from puna.evaluation.agreement import Difference, added_nats
from puna.evaluation.perplexity import Likelihood, evaluate_text
from puna.jobs.factoring import Allocation, Method, decompositions, factorise
from puna.jobs.load import find_model, load
from puna.jobs.machine import choose_device
from puna.jobs.peak import PeakMemory
from puna.jobs.run_folder import RunFolder, open_run
from puna.jobs.run_report import ranks_section, size_section, write_run_report
from puna.model.llama import Llama
from puna.model.surgery import named_linears
from puna.report.labels import label
from puna.report.numbers import human_bytes, human_seconds
from puna.text.corpus import Document, cut_documents, read_documents
from puna.tokens.tokenizer import Tokenizer
from puna.weights.folder import save_folder
from puna.weights.loading import weights_sha256

__all__ = [
    "CompressRecipe",
    "CompressResult",
    "Compressed",
    "calibration_windows",
    "compare",
    "compress",
    "compress_rows",
]

_DEFAULT_KEEP = 0.8
_PIECE_BYTES = 1 << 14
_WINDOWS, _WINDOW = 128, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressRecipe:
    """What to do to which model. `keep` is the kept share of the stored bits of the block Linears.

    allocation: how it is shared out; None: `greedy` for method auto, `uniform` for a method by its name.
    """

    model: Path
    calibration: Path | None = None
    method: Method = "auto"
    keep: float | None = None
    allocation: Allocation | None = None
    quantize: Literal["int8"] | None = None
    evaluate: Path | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UsageError(f"--keep: expected a share above 0 and at most 1, got {self.keep}", "0.8 keeps 80 %")
        if self.keep is not None and self.quantize is not None:
            raise UsageError("--keep together with --quantize is not built yet", "choose one of them")
        if self.allocation is not None and self.quantize is not None:
            raise UsageError("--allocation together with --quantize is not built yet", "choose one of them")
        if self.allocation == "greedy" and self.calibration is None:
            raise UsageError("--allocation greedy needs --calibration", "what a matrix is worth is measured on it")
        if self.method != "auto" and self.quantize is not None:
            raise UsageError(f"--method {self.method} together with --quantize is not built yet", "choose one of them")
        if self.needs_calibration and self.calibration is None:
            raise UsageError(
                f"--method {self.method} needs --calibration", "name a text of the kind the model will see"
            )
        if self.calibration is None and self.evaluate is None:
            raise UsageError("expected --calibration or --evaluate", "a text is needed to measure the added nats")

    @property
    def needs_calibration(self) -> bool:
        """Whether something is fitted to a text."""
        return self.quantize is None and (self.method != "svd" or self.allocation == "greedy")

    @property
    def wanted(self) -> float | None:
        """The kept share: 0.8 where no other lever is named."""
        return _DEFAULT_KEEP if self.keep is None and self.quantize is None else self.keep


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressResult:
    """What `puna compress --json` prints. Parameters and bytes are those of the whole model."""

    method: str
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    added_nats: float
    added_nats_low: float
    added_nats_high: float
    ranks: dict[str, int]
    seconds: float
    peak_bytes: int
    model: str


def compress(recipe: CompressRecipe, out: Path, *, device: str = "auto") -> CompressResult:
    """Write the smaller model to `out`/model, and measure it. The same command on an unfinished `out` begins anew.

    Errors: UsageError, BadData, CheckpointMismatch, DiskFull, FormatError, RunLocked.
    """
    started, place = time.monotonic(), choose_device(device)
    source = find_model(recipe.model)
    with open_run(out, recipe, resume=True) as folder:
        peak = PeakMemory(place)
        loaded = load(source, device=place)
        model, tokenizer = loaded.llama, loaded.tokenizer
        if recipe.wanted is not None:
            _refuse_compressed(model, source)
        fitting, judging = _texts(recipe)
        before = evaluate_text(model, tokenizer, *judging)
        sizes = _parameters(model), _bytes(model)
        ranks = _shrink(model, recipe, tokenizer, fitting)
        difference = added_nats(before, evaluate_text(model, tokenizer, *judging))
        method = recipe.quantize or ("kfac" if recipe.method == "auto" else recipe.method)
        record = _record(method, recipe.wanted, fitting if recipe.needs_calibration else None, source)
        save_folder(model, out / "model", tokenizer, record)
        result = CompressResult(
            method=method,
            parameters_before=sizes[0],
            parameters_after=_parameters(model),
            bytes_before=sizes[1],
            bytes_after=_bytes(model),
            added_nats=difference.mean,
            added_nats_low=difference.low,
            added_nats_high=difference.high,
            ranks=ranks,
            seconds=time.monotonic() - started,
            peak_bytes=peak.growth_bytes(),
            model=str(out / "model"),
        )
        _report(folder, result)
    return result


def compress_rows(result: CompressResult, lang: str = "en") -> list[tuple[str, str]]:
    """The result as lines for people."""
    low, high = f"{result.added_nats_low:.4f}", f"{result.added_nats_high:.4f}"
    return [
        (label(lang, "run.row.method"), result.method),
        (label(lang, "run.row.numbers"), f"{result.parameters_before:,} → {result.parameters_after:,}"),
        (label(lang, "run.row.bytes"), f"{human_bytes(result.bytes_before)} → {human_bytes(result.bytes_after)}"),
        (label(lang, "run.row.added"), label(lang, "run.added", mean=f"{result.added_nats:.4f}", low=low, high=high)),
        (label(lang, "run.row.time"), human_seconds(result.seconds)),
        (label(lang, "run.row.model"), result.model),
    ]


def compare(
    model: Llama,
    tokenizer: Tokenizer,
    windows: Sequence[Tensor],
    before: Likelihood,
    texts: Sequence[str],
    keeps: Sequence[float],
) -> list[Compressed]:
    """Both methods at several sizes, and int8: each on a copy of the model, all judged on the same texts."""
    results = []
    methods: tuple[Method, ...] = ("svd", "whitened")
    for method in methods:
        spectra = dict(decompositions(model, method, windows))
        for keep in keeps:
            results.append(_try(model, tokenizer, before, texts, method, keep, spectra))
    return [*results, _try(model, tokenizer, before, texts, "int8", None, {})]


def calibration_windows(tokenizer: Tokenizer, texts: Sequence[str], window: int) -> list[Tensor]:
    """ids_1T windows from the texts, evenly spread, at most 64 Ki tokens."""
    windows = []
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text, bos=True))
        windows += [part[None] for part in ids.split(window) if len(part) > 1]
    if not windows:
        raise BadData("calibration: expected text, got none", "give a longer calibration text")
    stride = max(1, len(windows) // _WINDOWS)
    return windows[::stride][:_WINDOWS]


def _report(folder: RunFolder, result: CompressResult, lang: str = "en") -> None:
    sections = [size_section(lang, result.bytes_before, result.bytes_after)]
    if result.ranks:
        sections.append(ranks_section(lang, result.ranks))
    write_run_report(folder, "compress", compress_rows(result, lang), sections, lang)


def _try(
    model: Llama,
    tokenizer: Tokenizer,
    before: Likelihood,
    texts: Sequence[str],
    method: str,
    keep: float | None,
    spectra: Mapping[str, Spectrum],
) -> Compressed:
    smaller = copy.deepcopy(model)
    if keep is None:
        quantize_int8(smaller)
        ranks = {}
    else:
        ranks = compress_low_rank(smaller, spectra.items(), uniform_ranks(model.config, keep)).ranks
    difference: Difference = added_nats(before, evaluate_text(smaller, tokenizer, *texts))
    return Compressed(
        method=method,
        keep=keep,
        bytes=_bytes(smaller),
        added_nats=difference.mean,
        low=difference.low,
        high=difference.high,
        ranks=ranks,
    )


def _shrink(model: Llama, recipe: CompressRecipe, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, int]:
    """Do in place what the recipe asks for; return by path the ranks of what was factorised."""
    if recipe.wanted is None:
        quantize_int8(model)
        return {}
    windows: list[Tensor] = []
    if recipe.needs_calibration:
        windows = calibration_windows(tokenizer, texts, min(_WINDOW, model.config.max_seq_len))
    allocation = recipe.allocation or ("greedy" if recipe.method == "auto" else "uniform")
    return factorise(model, recipe.method, recipe.wanted, allocation, windows)


def _refuse_compressed(model: Llama, source: Path) -> None:
    """A kept share is one of a dense model's bits: taken of a smaller one it could make it larger."""
    if any(not isinstance(linear, nn.Linear) for _, linear in named_linears(model)):
        raise UsageError(f"{source} is compressed already", "compress the model that it was made from")


def _record(method: str, keep: float | None, fitting: Sequence[str] | None, source: Path) -> dict[str, object]:
    """Where a smaller model came from. fitting: the calibration texts; None: the weights alone."""
    return {
        "method": method,
        "keep": keep,
        "calibration_sha256": None if fitting is None else hashlib.sha256("\0".join(fitting).encode()).hexdigest(),
        "base_sha256": weights_sha256(source),
    }


def _texts(recipe: CompressRecipe) -> tuple[list[str], list[str]]:
    """(fitted to, judged by): the last tenth of the calibration documents judges, unless a text of its own is given."""
    fitting: tuple[Document, ...] = ()
    if recipe.calibration is not None:
        fitting = cut_documents(read_documents([recipe.calibration]).documents, _PIECE_BYTES)
    if recipe.evaluate is not None:
        judging = read_documents([recipe.evaluate]).documents
    else:
        cut = len(fitting) - max(1, len(fitting) // 10)
        fitting, judging = fitting[:cut], fitting[cut:]
        if not fitting:
            raise BadData(
                "calibration: too little text to hold a tenth of it out", "give more text, or --evaluate FILE"
            )
    return [document.text for document in fitting], [document.text for document in judging]


def _parameters(model: Llama) -> int:
    return sum(weight.numel() for weight in (*model.parameters(), *_stored_buffers(model)))


def _bytes(model: Llama) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *_stored_buffers(model)))


def _stored_buffers(model: Llama) -> list[Tensor]:
    """int8 codes and scales; the rotation frequencies are no part of a model's file."""
    return [tensor for name, tensor in model.named_buffers() if name != "frequencies_P"]
