"""Activations: ReLU, Swish and the gates of a feed-forward network with their slopes, and the rule for its width."""

from collections.abc import Mapping

import torch
from torch import Tensor

from puna.arch.presets import find_preset
from puna.arch.variants import FEED_FORWARDS, matched_ffn_dim
from puna.model.activations import ACTIVATIONS
from puna.model.feed_forward import FeedForward, PlainFeedForward
from puna.model.linears.derived import value_of
from puna.model.walk import Stage, walk
from puna.planning.counting import group_parameters
from puna.report.axes import Axis
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, curves, relative_difference, watching
from puna.topics.words import Words
from puna.weights.meta import meta_params

__all__ = ["TOPIC"]

_FUNCTIONS = {"ReLU": "relu", "Swish = SiLU": "silu", "GELU": "gelu", "sigma": "sigmoid"}
_POINTS = (-4.0, -2.0, -1.2785, -1.0, -0.1, 0.0, 0.1, 1.0, 2.0, 4.0)
_MODELS = ("llama-1-7b", "llama-1-65b", "llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3-8b", "llama-3-70b")
_SHOWN = 6  # shown of each vector


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    config = subject.config
    numbers: dict[str, Value] = {
        "ffn_width": config.ffn_dim,
        "ffn_over_d": config.ffn_dim / config.dim,
        "ffn_parameters": group_parameters(config, "mlp"),
    }
    if subject.llama is not None:
        numbers |= _inside(next(walk(subject.llama, subject.ids_BT)), FEED_FORWARDS[config.ffn])
    x, at = torch.linspace(-5, 5, 201), Axis(label="x")
    values, slopes = ({name: y.tolist() for name, y in of(x).items()} for of in (_values, _slopes))
    pictures = {
        "activations": curves(at, Axis(label=words.numbers["value"]), x.tolist(), values),
        "activations-slopes": curves(at, Axis(label=words.numbers["slope"]), x.tolist(), slopes),
    }
    return Shown.of(model=numbers, curves=_curves(), widths=_widths(words), pictures=pictures)


def _inside(stage: Stage, function: str) -> dict[str, Value]:
    """The last token's vector through the first layer's network."""
    mlp, seen = stage.block.mlp, list[Tensor]()
    with watching({"mlp": mlp}, lambda _, x_BTD, y_BTD: seen.extend((value_of(x_BTD), y_BTD))):
        stage.run()
    x_BTD, y_BTD = seen
    steps = {name: each[0, -1] for name, each in (_steps(mlp, x_BTD) | {"W_down (...)": y_BTD}).items()}
    before_F = steps["W_gate x" if isinstance(mlp, FeedForward) else "W_up x"]
    return {
        "below_zero_share": float((before_F < 0).float().mean()),
        "output_difference": relative_difference(y_BTD, _network_by_hand(mlp, x_BTD, function)),
        "steps": Grid.of(
            [str(place) for place in range(_SHOWN)], {name: each[:_SHOWN].tolist() for name, each in steps.items()}
        ),
    }


def _steps(mlp: FeedForward | PlainFeedForward, x: Tensor) -> dict[str, Tensor]:
    up = mlp.up_proj(x)
    if isinstance(mlp, PlainFeedForward):
        return {"x": x, "W_up x": up, "act(W_up x)": mlp.activation.value(up)}
    gate = mlp.gate_proj(x)
    opened = mlp.activation.value(gate)
    return {"x": x, "W_gate x": gate, "act(W_gate x)": opened, "W_up x": up, "act(W_gate x) * W_up x": opened * up}


def _curves() -> dict[str, Value]:
    """The functions and their slopes, and where Swish is least."""
    x = torch.tensor(_POINTS, dtype=torch.float64)
    fine = torch.linspace(-2, -1, 1_000_001, dtype=torch.float64)
    swish, by_hand = ACTIVATIONS["silu"].value(fine), _functions_by_hand(x)
    apart = [float((y - by_hand[_FUNCTIONS[name]]).abs().max()) for name, y in _values(x).items()]
    return {
        "swish_minimum": float(swish.min()),
        "swish_minimum_at": float(fine[swish.argmin()]),
        "functions_difference": max(apart),
        "values": _table(_values(x)),
        "slopes": _table(_slopes(x)),
    }


def _values(x: Tensor) -> dict[str, Tensor]:
    return {name: ACTIVATIONS[key].value(x) for name, key in _FUNCTIONS.items()}


def _slopes(x: Tensor) -> dict[str, Tensor]:
    return {name: ACTIVATIONS[key].pull(torch.ones_like(x), x) for name, key in _FUNCTIONS.items()}


def _table(of: Mapping[str, Tensor]) -> Grid:
    values = torch.stack(list(of.values()), dim=1).tolist()
    return Grid(rows=[f"x = {point:g}" for point in _POINTS], columns=list(of), values=values)


def _widths(words: Words) -> dict[str, Value]:
    """Meta's rule for the width f, as released models have it in their params.json, and the width without a gate."""
    rows, apart = dict[str, list[float | str]](), list[int]()
    for name in _MODELS:
        config = find_preset(name).config
        rule, d = meta_params(config), config.dim
        multiplier, multiple_of = rule.get("ffn_dim_multiplier"), rule["multiple_of"]
        width = _width_by_hand(d, multiplier, multiple_of)
        written = words.numbers["without"] if multiplier is None else multiplier
        rows[name] = [d, 8 * d // 3, written, multiple_of, width, config.ffn_dim / d]
        apart.append(abs(width - config.ffn_dim))
    return {
        "rule": Grid.of(["d", "int(8 d / 3)", "m", words.numbers["multiple_of"], "f", "f / d"], rows),
        "rule_difference": max(apart),
        "matched_width": matched_ffn_dim(find_preset("llama-3-8b").config.ffn_dim),
    }


def _network_by_hand(mlp: FeedForward | PlainFeedForward, x: Tensor, function: str) -> Tensor:
    """W_down (act(W_gate x) * W_up x), and without a gate W_down act(W_up x)."""
    if isinstance(mlp, PlainFeedForward):
        return mlp.down_proj(_functions_by_hand(mlp.up_proj(x))[function])
    return mlp.down_proj(_functions_by_hand(mlp.gate_proj(x))[function] * mlp.up_proj(x))


def _functions_by_hand(x: Tensor) -> dict[str, Tensor]:
    sigma = 1 / (1 + torch.exp(-x))
    return {"relu": x.clamp(min=0), "silu": x * sigma, "gelu": x * (1 + torch.erf(x / 2**0.5)) / 2, "sigmoid": sigma}


def _width_by_hand(d: int, multiplier: float | None, multiple_of: int) -> int:
    width = int((multiplier or 1) * int(8 * d / 3))
    return -(-width // multiple_of) * multiple_of


TOPIC = Topic(
    name="activations",
    formula=(
        "ReLU(x) = max(0, x),  Swish(x) = SiLU(x) = x sigma(x),  sigma(x) = 1 / (1 + e^-x)",
        "y = W_down (act(W_gate x) * W_up x),  act: sigma in GLU, SiLU in SwiGLU, GELU in GEGLU",
        "f = int(m int(8 d / 3)), rounded up to a multiple; m = 1 where there is none",
    ),
    symbols={"x, y": "d", "W_gate, W_up": "f d", "W_down": "d f", "f": "f"},
    show=_show,
    code=("puna/model/feed_forward.py", "feed_forward"),
    test=("tests/model/test_activations.py", "test_each_network_is_its_formula"),
)
