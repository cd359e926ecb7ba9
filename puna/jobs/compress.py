"""Compression: fewer or shorter numbers for the same model, and what that costs in nats on text it was not fitted to."""

import hashlib
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from puna.compression.embeddings import check_tables, collect_table_statistics, factor_tables
from puna.compression.fewer_heads import attention_grams, pool_key_value_heads
from puna.compression.heads import check_kv_heads
from puna.compression.healing import teacher, train_everything, train_factors
from puna.compression.rounding import Residual, check_residual_rank, check_rounding, round_linears
from puna.compression.sizes import stored_bytes, stored_parameters
from puna.compression.statistics import collect_statistics, too_few_tokens
from puna.errors import UsageError
from puna.evaluation.perplexity import evaluate_text
from puna.files import remove_folder
from puna.jobs.calibration import WINDOW, calibration_texts, calibration_windows
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.factoring import Factored, factorise, usual_allocation
from puna.jobs.healing import Healed, heal
from puna.jobs.layerwise import LayerNotice, LayerObserver, Layerwise, is_layerwise, load_mapped
from puna.jobs.levers import Judge, Lever, cache_bytes, levers_section
from puna.jobs.load import LoadedModel, find_model, load
from puna.jobs.low_rank_report import (
    TableName,
    TableSpectrum,
    kept_figure,
    spectra_section,
    table_spectra,
    tables_section,
)
from puna.jobs.machine import choose_device
from puna.jobs.peak import PeakMemory
from puna.jobs.run_folder import RunFolder, open_run
from puna.jobs.run_report import learning_sections, ranks_section, size_section, write_run_report
from puna.model.llama import Llama
from puna.model.surgery import named_linears
from puna.report.labels import check_language, label
from puna.report.numbers import human_bytes, human_seconds
from puna.weights.folder import save_folder
from puna.weights.headers import read_stored

__all__ = ["CompressResult", "compress", "compress_rows", "refuse_compressed"]

_PARTS = "parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressResult:
    """What `puna compress --json` prints. Parameters and bytes are those of the whole model; of the cache, for each token.

    levers: what was done, in that order; the nats of the last one are the result's.
    """

    method: str
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    cache_bytes_before: int
    cache_bytes_after: int
    added_nats: float
    added_nats_low: float
    added_nats_high: float
    levers: list[Lever]
    ranks: dict[str, int]
    healing: Healed | None
    seconds: float
    peak_bytes: int
    model: str


@dataclass(slots=True, kw_only=True)
class _Made:
    """What the levers found out on their way, for the report."""

    factored: Factored | None = None
    tables: dict[TableName, TableSpectrum] = field(default_factory=dict)
    healed: Healed | None = None


def compress(
    recipe: CompressRecipe, out: Path, *, device: str = "auto", observers: tuple[Callable[[Any], None], ...] = (),
    lang: str = "en",
) -> CompressResult:  # fmt: skip
    """Write the smaller model to `out`/model, and measure it. The same command on an unfinished `out` goes on after the last
    finished layer where the work is done layer by layer; else it decomposes anew, and heals from the last checkpoint.

    Args:   observers: of layers or, in healing, of steps. lang: the report's.
    Errors: UsageError, BadData, CheckpointMismatch, DiskFull, FormatError, Interrupted, NonFiniteLoss, RunLocked.
    """
    check_language(lang)
    started, place, source = time.monotonic(), choose_device(device), _source(recipe)
    with open_run(out, recipe, resume=True) as folder:
        peak = PeakMemory(place)
        loaded, layers = _open(recipe, source, place, folder, observers)
        model, tokenizer, (fitting, judging) = loaded.llama, loaded.tokenizer, calibration_texts(recipe)
        before = (evaluate_text if layers is None else layers.judge)(model, tokenizer, *judging)
        sizes = stored_parameters(model), stored_bytes(model), cache_bytes(model)
        judge = Judge(model=model, tokenizer=tokenizer, texts=judging, before=before)
        healing = partial(_heal, loaded, recipe, fitting, folder, peak=peak, observers=observers, lang=lang)
        made = _shrink(loaded, recipe, fitting, layers, judge, healing, observers)
        save_folder(model, out / "model", tokenizer, _record(recipe, fitting, loaded.base_sha256))
        remove_folder(out / _PARTS)
        last = judge.levers[-1]
        result = CompressResult(
            method=_method(recipe),
            parameters_before=sizes[0],
            parameters_after=stored_parameters(model),
            bytes_before=sizes[1],
            bytes_after=last.bytes,
            cache_bytes_before=sizes[2],
            cache_bytes_after=last.cache_bytes_per_token,
            added_nats=last.added_nats,
            added_nats_low=last.low,
            added_nats_high=last.high,
            levers=judge.levers,
            ranks={} if made.factored is None else made.factored.ranks,
            healing=made.healed,
            seconds=time.monotonic() - started,
            peak_bytes=peak.growth_bytes(),
            model=str(out / "model"),
        )
        _report(lang, folder, result, made)
    return result


def _source(recipe: CompressRecipe) -> Path:
    """The model to be made smaller. Errors: FormatError; UsageError: it is no Llama."""
    source = find_model(recipe.model)
    read_stored(source).model.require_llama(source)
    return source


def compress_rows(result: CompressResult, lang: str = "en") -> list[tuple[str, str]]:
    """The result as lines for people."""
    low, high = f"{result.added_nats_low:.4f}", f"{result.added_nats_high:.4f}"
    return [
        (label(lang, "run.row.method"), result.method),
        (label(lang, "run.row.numbers"), f"{result.parameters_before:,} → {result.parameters_after:,}"),
        (label(lang, "run.row.bytes"), f"{human_bytes(result.bytes_before)} → {human_bytes(result.bytes_after)}"),
        *_cache_rows(result, lang),
        (label(lang, "run.row.added"), label(lang, "run.added", mean=f"{result.added_nats:.4f}", low=low, high=high)),
        *_healing_rows(result.healing, lang),
        (label(lang, "run.row.time"), human_seconds(result.seconds)),
        (label(lang, "run.row.model"), result.model),
    ]


def _report(lang: str, folder: RunFolder, result: CompressResult, made: _Made) -> None:
    factored = made.factored
    sections = [size_section(lang, result.bytes_before, result.bytes_after)]
    if len(result.levers) > 1 or result.cache_bytes_after != result.cache_bytes_before:
        sections.append(levers_section(lang, result.levers))
    if factored is not None and factored.ranks:
        sections.append(ranks_section(lang, result.ranks, kept_figure(lang, factored)))
        if factored.has_spectra:
            sections.append(spectra_section(lang, factored))
    if made.tables:
        sections.append(tables_section(lang, made.tables))
    if result.healing is not None:
        sections += learning_sections(lang, folder)
    write_run_report(folder, "compress", compress_rows(result, lang), sections, lang)


def _open(
    recipe: CompressRecipe,
    source: Path,
    place: torch.device,
    folder: RunFolder,
    observers: tuple[LayerObserver, ...],
) -> tuple[LoadedModel, Layerwise | None]:
    """The dense model, and how to go through it layer by layer; None: the whole of it at once."""
    is_mapped = is_layerwise(recipe, place)
    loaded = load_mapped(source) if is_mapped else load(source, device=place)
    if recipe.wanted is not None or recipe.kv_heads is not None:
        refuse_compressed(loaded.llama, source)
    _check_levers(loaded.llama, recipe)
    if not is_mapped:
        return loaded, None
    return loaded, Layerwise(parts=folder.path / _PARTS, base_sha256=loaded.base_sha256, observers=observers)


def _check_levers(model: Llama, recipe: CompressRecipe) -> None:
    """What a lever would refuse later on, before the work begins. Errors: UsageError."""
    if recipe.kv_heads is not None:
        check_kv_heads(model.config.n_kv_heads, recipe.kv_heads)
    if recipe.embedding_rank is not None:
        check_tables(model, recipe.embedding_rank, recipe.embedding_metric, recipe.embedding_tables)
    if recipe.quantize is not None:
        check_rounding(model, recipe.quantize, is_factored_first=recipe.wanted is not None)
    if recipe.residual_rank is not None:
        heads = model.config.n_kv_heads if recipe.kv_heads is None else recipe.kv_heads
        check_residual_rank(replace(model.config, n_kv_heads=heads), recipe.residual_rank)


def _shrink(
    loaded: LoadedModel,
    recipe: CompressRecipe,
    texts: Sequence[str],
    layers: Layerwise | None,
    judge: Judge,
    healing: Callable[[Llama], Healed],
    observers: tuple[Callable[[Any], None], ...],
) -> _Made:
    """Pull, in place, the levers that the recipe asks for, each judged."""
    model, made = loaded.llama, _Made()
    dense = None if recipe.healing is None else teacher(model, everything_learns=recipe.everything_learns)
    windows: list[Tensor] = []
    if recipe.needs_calibration:
        windows = calibration_windows(loaded.tokenizer, texts, min(WINDOW, model.config.max_seq_len))
        if layers is None:
            _tell_of_short_text(model, recipe, windows, observers)
    if recipe.kv_heads is not None:
        grams = None if recipe.pooling == "mean" else attention_grams(model, windows)
        pool_key_value_heads(model, recipe.kv_heads, grams, recipe.pooling)
        judge.add("kv_heads")
    if recipe.wanted is not None:
        if layers is not None:
            made.factored = layers.factorise(model, windows, recipe.wanted)
        else:
            allocation = recipe.allocation or usual_allocation(recipe.method)
            made.factored = factorise(model, recipe.method, recipe.wanted, allocation, windows)
        judge.add("low_rank")
    if recipe.embedding_rank is not None:
        statistics = None if recipe.embedding_metric == "plain" else collect_table_statistics(model, windows)
        tables = factor_tables(
            model, recipe.embedding_rank, statistics, recipe.embedding_metric, recipe.embedding_tables
        )
        made.tables = table_spectra(tables, tied=model.config.tied_embeddings)
        judge.add("embeddings")
    if dense is not None:
        (train_everything if recipe.everything_learns else train_factors)(model)
        made.healed = healing(dense)
        judge.add("healing")
    if recipe.quantize is not None:
        round_linears(model, recipe.quantize, _residual(recipe, model, windows))
        judge.add("bits")
    return made


def _residual(recipe: CompressRecipe, model: Llama, windows: Sequence[Tensor]) -> Residual | None:
    """The correction of what rounding loses, with the statistics that it needs of the model as it is now."""
    if recipe.residual_rank is None:
        return None
    grams = collect_statistics(model, windows).grams if recipe.correction_reads else None
    return Residual(rank=recipe.residual_rank, correction=recipe.correction, grams=grams)


def _tell_of_short_text(
    model: Llama, recipe: CompressRecipe, windows: Sequence[Tensor], observers: tuple[LayerObserver, ...]
) -> None:
    tokens = sum(ids_1T.numel() for ids_1T in windows)
    is_damped = recipe.wanted is None or recipe.method in ("auto", "kfac")
    if message := too_few_tokens(model.config, tokens, damped=is_damped):
        for observer in observers:
            observer(LayerNotice(message=message))


def _heal(
    loaded: LoadedModel, recipe: CompressRecipe, texts: Sequence[str], folder: RunFolder, dense: Llama, **given: Any
) -> Healed:
    """Args: given: as for heal."""
    assert recipe.healing is not None
    documents = [loaded.tokenizer.encode(text, bos=True) for text in texts]
    words = "puna", "compress", recipe.model, folder.path.resolve(), "--recipe", folder.recipe.resolve()
    go_on = shlex.join(map(str, words))
    return heal(loaded.llama, dense, documents, recipe.healing, folder, go_on=go_on, **given)


def _cache_rows(result: CompressResult, lang: str) -> list[tuple[str, str]]:
    if result.cache_bytes_after == result.cache_bytes_before:
        return []
    before, after = human_bytes(result.cache_bytes_before), human_bytes(result.cache_bytes_after)
    return [(label(lang, "run.row.cache"), f"{before} → {after}")]


def _healing_rows(healed: Healed | None, lang: str) -> list[tuple[str, str]]:
    if healed is None:
        return []
    before, after = f"{healed.kl_before:.4f}", f"{healed.kl_after:.4f}"
    words = label(lang, "run.healed", before=before, after=after, step=f"{healed.step:,}")
    return [(label(lang, "run.row.healing"), words)]


def refuse_compressed(model: Llama, source: Path) -> None:
    """A kept share is one of a dense model's bits: taken of a smaller one it could make it larger, as fewer heads could."""
    if any(not isinstance(linear, nn.Linear) for _, linear in named_linears(model)):
        raise UsageError(f"{source} is compressed already", "compress the model that it was made from")


def _method(recipe: CompressRecipe) -> str:
    """The levers by their methods: `joint+kfac`."""
    parts: list[str] = [] if recipe.kv_heads is None else [recipe.pooling]
    if recipe.wanted is not None:
        parts.append("kfac" if recipe.method == "auto" else recipe.method)
    if recipe.embedding_rank is not None:
        parts.append(f"tables {recipe.embedding_metric}")
    if recipe.quantize is not None:
        parts.append(recipe.quantize)
    if recipe.residual_rank is not None:
        parts.append(recipe.correction)
    return "+".join(parts)


def _record(recipe: CompressRecipe, fitting: Sequence[str], base_sha256: str) -> dict[str, object]:
    """Where a smaller model came from; the digest is of the calibration texts, and null where the weights alone were used."""
    digest = hashlib.sha256("\0".join(fitting).encode()).hexdigest()
    return {
        "method": _method(recipe),
        "keep": recipe.wanted,
        "calibration_sha256": digest if recipe.needs_calibration else None,
        "base_sha256": base_sha256,
    }
