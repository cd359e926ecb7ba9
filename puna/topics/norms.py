"""Norms: RMSNorm, LayerNorm and BatchNorm on the same vectors: what each divides by, keeps, and lets through."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from puna.arch.modules import norm_count, norm_parameters, parameter_count
from puna.model.llama import Llama
from puna.model.norms import NORMS, BatchNorm, LayerNorm, RMSNorm
from puna.report.axes import Axis
from puna.report.curves import LineChart
from puna.report.heat import HeatMap
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, curves, relative_difference, watching
from puna.topics.words import Words

__all__ = ["TOPIC"]

# Four tokens of four features, of which the first is four times as large as the last.
_X_TD = torch.tensor([[4, 2, 1, 1], [-4, 0, 1, -1], [4, -2, -1, 1], [-4, 0, -1, -1]], dtype=torch.float64)
_FEATURES, _TOKENS = ([f"{name}{index}" for index in range(4)] for name in ("x_", "t = "))
_EPS, _SMALL = 1e-5, 1e-3
_KINDS = {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm, "BatchNorm": BatchNorm}
_ROWS = 16  # of a model's norms shown at most


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    config = subject.config
    numbers: dict[str, Value] = {
        "norms": norm_count(config),
        "norm_parameters": norm_parameters(config),
        "parameters_share": norm_parameters(config) / parameter_count(config),
        "eps": config.norm_eps,
    }
    if subject.llama is not None:
        numbers |= _inside(subject.llama, subject.ids_BT, words)
    moved = {name: _moved(_norm(name)) for name in _KINDS}
    moved["BatchNorm.eval()"] = _moved(_norm("BatchNorm").eval())
    earlier = {name: [float(each_TT.triu(1).max())] for name, each_TT in moved.items()}
    future = HeatMap(
        rows=_TOKENS, columns=_TOKENS, values=(moved["BatchNorm"] / moved["BatchNorm"].max()).tolist(),
        columns_label=words.numbers["changed"], key=words.numbers["moved"], whole=words.numbers["whole"],
    )  # fmt: skip
    return Shown.of(
        model=numbers,
        vector=_vector(),
        small=_small(words),
        future={"earlier_moved": Grid.of(words.of("at_most"), earlier)},
        pictures={"norms": _chart(words), "norms-future": future},
    )


def _inside(llama: Llama, ids_BT: Tensor, words: Words) -> dict[str, Value]:
    """What each norm of a pass reads and gives."""
    seen: list[tuple[str, Tensor, Tensor]] = []
    norms: dict[str, Any] = {
        path: each for path, each in llama.named_modules() if isinstance(each, tuple(NORMS.values()))
    }
    with watching(norms, lambda *each: seen.append(each)):
        llama.hidden(ids_BT)
    shown = [*seen[: -1 : -(-len(seen) // _ROWS)], seen[-1]]
    rows = {path: [*_sizes_by_hand(x), _sizes_by_hand(y)[0]] for path, x, y in shown}
    found: dict[str, Value] = {"stream": Grid.of(words.of("size_before", "mean_share", "size_after"), rows)}
    rms = [(norms[path], x, y) for path, x, y in seen if isinstance(norms[path], RMSNorm)]
    if rms:
        apart = [relative_difference(y, _normed_by_hand(x, norm.eps) * norm.weight) for norm, x, y in rms]
        found["output_difference"] = max(apart)
    return found


def _norm(name: str) -> Any:
    """One with a gain of 1 and no bias, in float64, that has read the four tokens."""
    norm = _KINDS[name](len(_FEATURES), _EPS).double()
    norm(_X_TD)
    return norm


def _vector() -> dict[str, Value]:
    """What each norm makes of the first token, and of the sizes of features over all four."""
    outputs = {"x": _X_TD} | {name: _norm(name)(_X_TD) for name in _KINDS}
    x_D, centred_TD = _X_TD[0], _X_TD - _X_TD.mean(-1, keepdim=True)
    per_feature_TD = _normed_by_hand((_X_TD - _X_TD.mean(0)).T, _EPS).T
    by_hand = torch.stack([_X_TD, *(_normed_by_hand(each, _EPS) for each in (_X_TD, centred_TD)), per_feature_TD])
    ratios = {
        "x": x_D,
        "RMSNorm": outputs["RMSNorm"][0],
        "x - mean": centred_TD[0],
        "LayerNorm": outputs["LayerNorm"][0],
    }
    apart = _norm("RMSNorm")(centred_TD) - _norm("LayerNorm")(centred_TD)
    return {
        "mean": float(x_D.mean()),
        "variance": float(x_D.var(correction=0)),
        "root_mean_square": _sizes_by_hand(x_D)[0],
        "outputs": _grid({name: y_TD[0] for name, y_TD in outputs.items()}),
        "ratios": _grid({name: each_D / each_D[-1] + 0.0 for name, each_D in ratios.items()}),  # + 0.0: no -0
        "spreads": _grid({name: y_TD.std(0, correction=0) for name, y_TD in outputs.items()}),
        "by_hand_difference": float((torch.stack([*outputs.values()]) - by_hand).abs().max()),
        "mean_free_difference": float(apart.abs().max()),
    }


def _small(words: Words) -> dict[str, Value]:
    """eps in the engine's place and in the slide's, for a small vector; at an ordinary size they hardly differ."""
    pairs = [(_norm("RMSNorm")(x_D), _beside_by_hand(x_D)) for x_D in (_SMALL * _X_TD[0], _X_TD[0])]
    apart = [float((inside - beside).abs().max()) for inside, beside in pairs]
    places = dict(zip(words.of("inside", "beside"), pairs[0], strict=True))
    return {"places": _grid(places), "places_apart": apart[0], "places_apart_ordinary": apart[1]}


def _moved(norm: Any) -> Tensor:
    """How far each token's output (row) moves when the first feature of a token (column) grows by 1."""
    steps = torch.zeros(4, 4, 4, dtype=torch.float64)
    steps[range(4), range(4), 0] = 1.0
    return torch.stack([(norm(_X_TD + step_TD) - norm(_X_TD)).abs().amax(-1) for step_TD in steps], dim=1)


def _chart(words: Words) -> LineChart:
    """A vector whose features are the numbers from -2 to 6, in a batch beside its opposite."""
    x_D = torch.linspace(-2, 6, 161, dtype=torch.float64)
    lines = {name: kind(len(x_D), _EPS).double()(torch.stack([x_D, -x_D]))[0].tolist() for name, kind in _KINDS.items()}
    return curves(Axis(label=words.numbers["feature"]), Axis(label=words.numbers["output"]), x_D.tolist(), lines)


def _grid(rows: Mapping[str, Tensor]) -> Grid:
    return Grid.of(_FEATURES, {name: each_D.tolist() for name, each_D in rows.items()})


def _normed_by_hand(x: Tensor, eps: float) -> Tensor:
    return x / (x.double().square().mean(-1, keepdim=True) + eps).sqrt()


def _beside_by_hand(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True).sqrt() + _EPS)


def _sizes_by_hand(x: Tensor) -> tuple[float, float]:
    """Root mean square, and how far the features' mean is from 0 in such units; the mean over tokens."""
    size = x.double().square().mean(-1).sqrt()
    return float(size.mean()), float((x.double().mean(-1).abs() / size).mean())


TOPIC = Topic(
    name="norms",
    formula=(
        "RMSNorm    y = gain * x / sqrt(mean(x^2) + eps),  the mean over the d features of one token",
        "LayerNorm  y = gain * (x - mean) / sqrt(var + eps) + bias,  var = mean((x - mean)^2),  over the same",
        "BatchNorm  the same formula, mean and var for each feature over the tokens of a batch",
    ),
    symbols={"x, y": "n d", "gain, bias": "d", "mean, var": "", "eps": ""},
    show=_show,
    code=("puna/model/norms.py", "RMSNorm"),
    test=("tests/model/test_norms.py", "test_the_output_is_x_over_the_root_of_its_mean_square_plus_eps"),
)
