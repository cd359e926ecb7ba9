"""Whitened compression at uniform ranks from mapped weights, a layer at a time: memory does not grow with the depth.

Finished layers stand in `parts`; stopped or killed, the same command goes on after the last of them. Told beforehand, and
again when the first layer is measured, is how long it takes.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.compression.allocation import uniform_ranks
from puna.compression.hulls import Matrix
from puna.compression.layerwise import Stream, embed, factor_layer
from puna.compression.statistics import too_few_tokens
from puna.errors import DiskFull, FormatError
from puna.evaluation.perplexity import Likelihood, evaluate_text
from puna.files import free_bytes
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.doctor import product_flops
from puna.jobs.factoring import Factored
from puna.jobs.layer_parts import LayerParts, judged_before
from puna.jobs.load import LoadedModel, load
from puna.jobs.signals import StopRequest, stop_request
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, named_linears, replace_linear
from puna.planning.whitening import layer_seconds
from puna.report.numbers import human_bytes, human_seconds
from puna.tokens.tokenizer import Tokenizer

__all__ = ["LayerEvent", "LayerNotice", "LayerObserver", "Layerwise", "is_layerwise", "load_mapped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerEvent:
    """How far a layer is, counted from 1; share: of all layers; seconds_left: until the last one is finished."""

    layer: int
    layers: int
    share: float
    seconds_left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNotice:
    """Something that a person should know; the work goes on."""

    message: str


LayerObserver = Callable[[LayerEvent | LayerNotice], None]


def is_layerwise(recipe: CompressRecipe, device: torch.device) -> bool:
    """Whether a recipe is done layer by layer: whitened at uniform ranks, on the CPU, and not healed as a whole."""
    is_plain = recipe.allocation in (None, "uniform") and recipe.healing is None and recipe.kv_heads is None
    return recipe.method == "whitened" and is_plain and recipe.wanted is not None and device.type == "cpu"


def load_mapped(source: Path) -> LoadedModel:
    """A model whose matrices stay in their file; one whose format allows no mapping is read into memory."""
    try:
        return load(source, mapped=True)
    except FormatError:
        return load(source)


@dataclass(slots=True, kw_only=True)
class Layerwise:
    """Where finished layers are kept, the digest of the weights that they are made of, and who is told."""

    parts: Path
    base_sha256: str
    observers: tuple[LayerObserver, ...] = ()
    _judged: dict[str, Any] = field(default_factory=dict)

    def judge(self, model: Llama, tokenizer: Tokenizer, *texts: str) -> Likelihood:
        """How the dense model does on the texts that judge it, measured once however often the work is taken up again."""
        digest = hashlib.sha256("\0".join((self.base_sha256, *texts)).encode()).hexdigest()
        self._judged = judged_before(self.parts)
        if self._judged.get("digest") != digest:
            self._judged = {"digest": digest, "likelihood": asdict(evaluate_text(model, tokenizer, *texts))}
        found = self._judged["likelihood"]
        pairs = {name: tuple(found[name]) for name in ("window_nats", "window_tokens")}
        return Likelihood(**{**found, **pairs})

    def factorise(self, model: Llama, windows: Sequence[Tensor], keep: float) -> Factored:
        """Put mapped factors, in the type of the model's table, where its Linears stand; the spectra are not kept.

        Errors: BadData; CheckpointMismatch: parts of other weights or another text; DiskFull; Interrupted.
        """
        ranks = uniform_ranks(model.config, keep)
        matrices = {
            path: Matrix(d_out=linear.out_features, d_in=linear.in_features, energies=())
            for path, linear in named_linears(model)
        }
        factored = Factored(ranks=ranks, cuts=ranks, matrices=matrices)
        if not ranks:
            return factored
        parts = LayerParts(self.parts, {"the model": self.base_sha256, "the calibration": _digest(windows)})
        lengths = tuple(ids_1T.shape[1] for ids_1T in windows)
        _check_space(self.parts, model, ranks, sum(lengths), parts.bytes)
        for message in filter(None, [*parts.notices, too_few_tokens(model.config, sum(lengths))]):
            self._tell(LayerNotice(message=message))
        if parts.layers < model.config.n_layers:
            self._finish(parts, model, ranks, parts.stream(lengths) if parts.layers else embed(model, windows))
        for layer in range(model.config.n_layers):
            for path, (U_oR, V_Ri) in parts.factors(layer).items():
                replace_linear(model, path, LowRankLinear(U_oR, V_Ri))
        return factored

    def _finish(self, parts: LayerParts, model: Llama, ranks: dict[str, int], stream: Stream) -> None:
        """Make the layers that are not there yet."""
        layers, tokens, threads = model.config.n_layers, len(stream.x_ND), torch.get_num_threads()
        planned = parts.seconds
        if planned is None:
            planned = layer_seconds(model.config, tokens, product_flops("float32", stream.x_ND.device), threads)
        clock = _Clock(layers=layers, first=parts.layers, steps=len(stream.lengths) + 8, planned=planned)
        went_on = f"goes on after layer {parts.layers} of {layers}: " if parts.layers else ""
        words = f"{went_on}about {human_seconds(clock.left(0))} for {layers - parts.layers} layers"
        if self._judged:
            words += f", then {human_seconds(self._judged['likelihood']['seconds'])} to judge the result"
        self._tell(LayerNotice(message=words))
        with stop_request() as stop:
            for layer in range(parts.layers, layers):
                clock.begin(layer)
                watch = _Watch(
                    stop, clock, self._tell, f"{layer} of {layers} layers are finished in {self.parts.parent}"
                )
                after = stream if layer + 1 < layers else None
                parts.save(dict(factor_layer(model, layer, stream, ranks, watch)), after, clock.spent, self._judged)
                clock.end()
                self._tell(clock.event(0))
                if layer == clock.first and layer + 1 < layers:
                    words = f"layer {layer + 1} took {human_seconds(clock.seconds[0])}: about {human_seconds(clock.left(0))}"
                    self._tell(LayerNotice(message=f"{words} for the other {layers - layer - 1}"))

    def _tell(self, event: LayerEvent | LayerNotice) -> None:
        for observer in self.observers:
            observer(event)


@dataclass(slots=True, kw_only=True)
class _Clock:
    """How long layers took, and what that says of those that are left."""

    layers: int
    first: int
    steps: int
    planned: float
    seconds: list[float] = field(default_factory=list)
    started: float = 0.0

    def begin(self, layer: int) -> None:
        assert layer == self.first + len(self.seconds)
        self.started = time.monotonic()

    def spent(self) -> float:
        """Seconds of the layer that is being made."""
        return time.monotonic() - self.started

    def end(self) -> None:
        self.seconds.append(self.spent())

    def left(self, spent: float) -> float:
        """Seconds, so many of the next layer's being spent."""
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else self.planned
        others = self.layers - self.first - len(self.seconds)
        return max(0.0, others * mean - min(spent, mean))

    def event(self, step: int) -> LayerEvent:
        """Where the work is after a step of the next layer."""
        done = self.first + len(self.seconds)
        spent = self.spent() if step else 0.0
        share = (done + min(1.0, step / self.steps)) / self.layers
        return LayerEvent(
            layer=min(done + 1, self.layers), layers=self.layers, share=share, seconds_left=self.left(spent)
        )


class _Watch:
    """Called after each window and matrix of a layer: tells, and leaves off where a signal asked for it."""

    def __init__(self, stop: StopRequest, clock: _Clock, tell: Callable[[LayerEvent], None], outcome: str) -> None:
        self._stop, self._clock, self._tell, self._outcome, self._step = stop, clock, tell, outcome, 0

    def __call__(self) -> None:
        self._step += 1
        self._stop.raise_if_asked(self._outcome, "the same command goes on with the next one")
        self._tell(self._clock.event(self._step))


def _digest(windows: Sequence[Tensor]) -> str:
    """Of the ids, window by window: the text, the tokenizer and the window's length are in it."""
    text = "\n".join(" ".join(map(str, ids_1T[0].tolist())) for ids_1T in windows)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_space(place: Path, model: Llama, ranks: dict[str, int], tokens: int, there: int) -> None:
    """Errors: DiskFull: before anything is done. Args: there: bytes of what is finished already."""
    linears = {path: get_linear(model, path) for path in ranks}
    numbers = sum(ranks[path] * (linear.in_features + linear.out_features) for path, linear in linears.items())
    table = model.embed_tokens.weight
    stream = 2 * tokens * model.config.dim * model.dtype.itemsize
    needed = 2 * (numbers * table.itemsize + table.nbytes) + stream - there
    if free_bytes(place) < needed:
        raise DiskFull(
            f"{place}: about {human_bytes(needed)} are needed for finished layers and the result, "
            f"{human_bytes(free_bytes(place))} are free", "free some space or choose another OUT",
        )  # fmt: skip
