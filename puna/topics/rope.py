"""RoPE: where a token stands turns its queries and keys, so that their product depends on the distance alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.model.positions import apply_rope, rope_angles, rope_frequencies
from puna.report.axes import Axis
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, curves
from puna.topics.words import Words

__all__ = ["TOPIC"]

_WORDS = ("猫", "在", "沙发", "上", "睡觉")  # the notes' five, at positions 0 to 4
_SHIFT = 1_000
_PAIRS = 4  # shown


def _show(subject: Subject, words: Words) -> Shown:
    config = subject.config
    frequencies_P = rope_frequencies(config).double()
    turns = (2 * torch.pi / frequencies_P).tolist()
    model: dict[str, Value] = {
        "angles": _angles(subject.pieces, frequencies_P),
        "fastest_turn_tokens": turns[0],
        "slowest_turn_tokens": turns[-1],
        "complex_difference": _complex_difference(config, subject.sizes["n"]),
    }
    example: dict[str, Value] = {
        "angles": _angles(_WORDS, frequencies_P),
        "score_moved_by_shift": _moved_by_shift(config, torch.float64),
        "engine_score_moved_by_shift": _moved_by_shift(config, torch.float32),
    }
    x, y = Axis(label=words.numbers["pair"]), Axis(label=words.numbers["turn"], form="count", is_log=True)
    chart = curves(x, y, range(len(turns)), {"": turns})
    return Shown.of(model=model, example=example, pictures={"rope": chart})


def _angles(names: Sequence[str], frequencies_P: Tensor) -> Grid:
    shown = frequencies_P[:_PAIRS].tolist()
    return Grid(
        rows=[f"{position} {name}" for position, name in enumerate(names)],
        columns=[f"j = {pair}" for pair in range(len(shown))],
        values=[[position * each for each in shown] for position in range(len(names))],
    )


def _moved_by_shift(config: ModelConfig, dtype: torch.dtype) -> float:
    """The most by which a score of the five words changes when all stand 1,000 positions later; q, k random, angles in dtype."""
    q_BTHE, k_BTHE = torch.randn(2, 1, len(_WORDS), 1, config.head_dim, dtype=dtype)
    near, far = (_scores_by_hand(q_BTHE, k_BTHE, rope_frequencies(config), start) for start in (0, _SHIFT))
    return float((near - far).abs().max()) * config.score_factor


def _scores_by_hand(q_BTHE: Tensor, k_BTHE: Tensor, frequencies_P: Tensor, start: int) -> Tensor:
    """By the engine's rotation; its angles are float32, those of float64 queries are formed here."""
    positions_BT = torch.arange(start, start + q_BTHE.shape[1])[None]
    if q_BTHE.dtype == torch.float64:
        angles_BTP = positions_BT[..., None] * frequencies_P.double()
        cos_BTP, sin_BTP = angles_BTP.cos(), angles_BTP.sin()
    else:
        cos_BTP, sin_BTP = rope_angles(frequencies_P, positions_BT)
    q_TE, k_TE = (apply_rope(x, cos_BTP, sin_BTP)[0, :, 0] for x in (q_BTHE, k_BTHE))
    return q_TE @ k_TE.T


def _complex_difference(config: ModelConfig, tokens: int) -> float:
    """Between the engine's half-split rotation and the notes' x e^(i phi), one complex number for each pair."""
    x_BTHE = torch.randn(1, tokens, 1, config.head_dim)
    cos_BTP, sin_BTP = rope_angles(rope_frequencies(config), torch.arange(tokens)[None])
    turned = apply_rope(x_BTHE, cos_BTP, sin_BTP)
    return float((turned - _turned_by_hand(x_BTHE, cos_BTP, sin_BTP)).abs().max())


def _turned_by_hand(x_BTHE: Tensor, cos_BTP: Tensor, sin_BTP: Tensor) -> Tensor:
    z_BTHP = torch.complex(*x_BTHE.chunk(2, dim=-1)) * torch.complex(cos_BTP, sin_BTP)[:, :, None]
    return torch.cat((z_BTHP.real, z_BTHP.imag), dim=-1)


TOPIC = Topic(
    name="rope",
    formula=("theta_j = base^(-2j / d_h)", "(x_j + i x_(j + d_h/2)) e^(i m theta_j), of q and k, in every layer"),
    symbols={"m": "tokens", "theta_j": "d_h/2", "x": "n h d_h"},
    show=_show,
    code=("puna/model/positions.py", "apply_rope"),
    test=("tests/model/test_positions.py", "test_a_score_depends_on_the_distance_alone"),
)
