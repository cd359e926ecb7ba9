"""Sinusoidal positions: a vector of sines and cosines for each place, added once to the embedded token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from puna.arch.variants import PositionKind
from puna.model.llama import Llama
from puna.model.positions import POSITIONS, SinusoidalPosition, sinusoids
from puna.report.axes import Axis
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, curves, relative_difference
from puna.topics.words import Words

__all__ = ["TOPIC"]

_WORDS = ["猫", "在", "沙发", "上", "睡觉"]  # the notes' five, at positions 0 to 4
_DIM = 8  # of the example: small enough to show whole vectors
_SHIFT = 3
_FAR = 1_000
_DRAWN_TOKENS = 64


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    vectors_TD = sinusoids(torch.arange(len(subject.ids)), subject.config.dim)
    numbers: dict[str, Value] = {
        "vectors": _grid(subject.pieces, vectors_TD),
        "squared_norms": vectors_TD.square().sum(-1).tolist(),
    }
    if subject.llama is not None:
        numbers |= _in_the_stream(subject.llama, subject.ids_BT)
    at = torch.arange(_DRAWN_TOKENS)
    drawn_DT = sinusoids(at, _DIM)[:, ::2].T.tolist()
    lines = {words.numbers["pair"].format(j=pair): y for pair, y in enumerate(drawn_DT)}
    x, y = (Axis(label=words.numbers[name]) for name in ("position", "coordinate"))
    return Shown.of(
        model=numbers,
        example=_example(),
        pictures={"sinusoidal": curves(x, y, at.tolist(), lines)},
    )


def _grid(names: Sequence[str], vectors_TD: Tensor) -> Grid:
    """The first coordinates of each position's vector."""
    columns = [f"{side} {pair}" for pair in range(_DIM // 2) for side in ("sin", "cos")]
    vectors = enumerate(vectors_TD[:, :_DIM].tolist())
    return Grid.of(columns, {f"{position} {names[position]}": vector for position, vector in vectors})


def _in_the_stream(llama: Llama, ids_BT: Tensor) -> dict[str, Value]:
    """What a model of 2017 would make of these weights: how large the sum's parts are, and what a shift of all tokens does."""
    x_BTD, position = llama.embed_tokens(ids_BT).float(), SinusoidalPosition(llama.config)
    nowhere = position.add(x_BTD, torch.zeros_like(ids_BT)) - sinusoids(torch.zeros_like(ids_BT), position.dim)
    added = position.add(torch.zeros_like(x_BTD), torch.arange(ids_BT.shape[1])[None])
    return {
        "token_length": float(nowhere.norm(dim=-1).mean()),
        "position_length": float(added.norm(dim=-1).mean()),
        "sines_moved_by_shift": _moved_by_shift(llama, ids_BT, "sinusoidal"),
        "rope_moved_by_shift": _moved_by_shift(llama, ids_BT, "rope"),
    }


def _moved_by_shift(llama: Llama, ids_BT: Tensor, kind: PositionKind) -> float:
    """The most by which the last layer's output changes when all tokens stand 1,000 positions later, of its largest value."""
    own, llama.position = llama.position, POSITIONS[kind](llama.config)
    positions_BT = torch.arange(ids_BT.shape[1])[None]
    near, far = (llama.hidden(ids_BT, positions_BT + start) for start in (0, _FAR))
    llama.position = own
    return relative_difference(far, near)


def _example() -> dict[str, Value]:
    """The five words' whole vectors in a width of 8, their products, and a shift as a rotation."""
    vectors_TD = sinusoids(torch.arange(len(_WORDS)), _DIM)
    later_TD = sinusoids(torch.arange(len(_WORDS)) + _SHIFT, _DIM)
    turned_TD, products_TT = _turned_by_hand(vectors_TD.double(), _SHIFT), _products_by_hand(vectors_TD)
    return {
        "squared_norms": vectors_TD.square().sum(-1).tolist(),
        "shift_difference": float((turned_TD - later_TD).abs().max()),
        "vectors": _grid(_WORDS, vectors_TD),
        "products": Grid(rows=_WORDS, columns=_WORDS, values=products_TT.tolist()),
    }


def _turned_by_hand(vectors_TD: Tensor, shift: int) -> Tensor:
    """R_k PE(m): the pair j of each vector turned by k theta_j."""
    pairs_P = torch.arange(0, vectors_TD.shape[-1], 2, dtype=torch.float64)
    angles_P = shift * 10_000 ** (-pairs_P / vectors_TD.shape[-1])
    sine, cosine = vectors_TD[:, ::2], vectors_TD[:, 1::2]
    turned = (sine * angles_P.cos() + cosine * angles_P.sin(), cosine * angles_P.cos() - sine * angles_P.sin())
    return torch.stack(turned, dim=-1).flatten(-2)


def _products_by_hand(vectors_TD: Tensor) -> Tensor:
    return vectors_TD @ vectors_TD.T


TOPIC = Topic(
    name="sinusoidal",
    formula=(
        "PE(m, 2j) = sin(m theta_j),  PE(m, 2j + 1) = cos(m theta_j),  theta_j = 10000^(-2j / d)",
        "x_m <- sqrt(d) x_m + PE(m), once, before the first layer",
        "PE(m + k) = R_k PE(m),  |PE(m)|^2 = d / 2",
    ),
    symbols={"m": "tokens", "theta_j": "rad", "PE": "n d", "x": "n d", "R_k": "d d"},
    show=_show,
    code=("puna/model/positions.py", "sinusoids"),
    test=("tests/model/test_variants.py", "test_sinusoids_are_rotated_by_a_shift_and_have_one_length"),
)
