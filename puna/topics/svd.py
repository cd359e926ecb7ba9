"""SVD: a weight as the product of two narrow ones, what that saves, and what it loses."""

from math import prod

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_path, linear_shapes
from puna.arch.presets import find_preset
from puna.compression.low_rank import Spectrum, decompose, decompose_whitened
from puna.compression.statistics import InputSum, watched
from puna.errors import UsageError
from puna.model.linears.kind import dense_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import get_linear
from puna.report.axes import Axis
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, curves
from puna.topics.words import Words

__all__ = ["TOPIC"]

_PATH = linear_path(0, "q_proj")
_LOSSES = ("weights_lost", "outputs_lost", "outputs_lost_whitened")


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    rank, shape = subject.sizes["r"], linear_shapes(subject.config)["q_proj"]
    if rank > min(shape):
        raise UsageError(
            f"rank: expected at most {min(shape)}, the smaller side of {_PATH}, got {rank}", "lower --rank"
        )
    example = find_preset("llama-3-8b").config
    counts = {"llama_3_8b": _counts(example, rank, words)}
    if subject.config != example:
        counts = {"layer": _counts(subject.config, rank, words)} | counts
    if subject.llama is None:
        return Shown.of(**counts, pictures={})
    losses, numbers = _of_a_weight(subject.llama, subject.ids_BT, rank)
    numbers["by_rank"] = Grid.of(
        words.of("factored_parameters", *_LOSSES), {str(r): [r * sum(shape), *each] for r, each in losses.items()}
    )
    lines = dict(zip(words.of(*_LOSSES), zip(*losses.values(), strict=True), strict=True))
    x, y = Axis(label=words.numbers["by_rank"]), Axis(label=words.numbers["lost"], form="percent")
    return Shown.of(model=numbers, **counts, pictures={"svd": curves(x, y, list(losses), lines)})


def _counts(config: ModelConfig, rank: int, words: Words) -> dict[str, Value]:
    """What every Linear of a layer holds dense, and as two factors of a rank; and from which rank on they save nothing."""
    rows = dict[str, tuple[float | str, ...]]()
    for name, shape in linear_shapes(config).items():
        with torch.device("meta"):
            factored = sum(each.numel() for each in LowRankLinear.empty(*shape, rank).parameters())
        rows[name] = (f"{shape[0]} × {shape[1]}", prod(shape), factored, round(prod(shape) / sum(shape), 1))
    columns = words.of("shape", "dense_parameters", "factored_parameters", "break_even_rank")
    return {"matrices": Grid.of(columns, rows)}


def _of_a_weight(llama: Llama, ids_BT: Tensor, rank: int) -> tuple[dict[int, list[float]], dict[str, Value]]:
    """The first layer's W_q, and what it makes of the text: shares lost by rank, and the laws at the rank asked for."""
    weight_oi, inputs = dense_weight(get_linear(llama, _PATH)).double(), InputSum(llama, _PATH)
    with watched(llama, {_PATH: lambda x: inputs.add(x.double())}):
        llama.hidden(ids_BT)
    plain, whitened = decompose(weight_oi), decompose_whitened(weight_oi, inputs.gram_ii)
    whole, outputs, most = plain.loss(0), whitened.loss(0), len(plain.energy_K)

    def lost_by_hand(spectrum: Spectrum, r: int) -> float:
        return _lost_by_hand(weight_oi, spectrum, r, inputs.gram_ii) / outputs

    def dropped_by_hand(r: int) -> float:
        return _lost_by_hand(weight_oi, plain, r, torch.eye(weight_oi.shape[1]).double()) / whole

    ranks = sorted({0, rank, most, *(2**power for power in range(most.bit_length()))})
    return {r: [plain.loss(r) / whole, lost_by_hand(plain, r), whitened.loss(r) / outputs] for r in ranks}, {
        "squares": plain.energy_K[:8].tolist(),
        "squares_dropped": plain.loss(rank),
        "squares_difference": abs(dropped_by_hand(rank) - plain.loss(rank) / whole),
        "outputs_difference": abs(lost_by_hand(whitened, rank) - whitened.loss(rank) / outputs),
        "full_rank_difference": dropped_by_hand(most),
    }


def _lost_by_hand(weight_oi: Tensor, spectrum: Spectrum, rank: int, gram_ii: Tensor) -> float:
    """|(W - U V) X|^2, of X only X X^T being known."""
    U_oR, V_Ri = spectrum.factors(rank)
    error_oi = weight_oi - U_oR @ V_Ri
    return float((error_oi @ gram_ii * error_oi).sum())


TOPIC = Topic(
    name="svd",
    formula=(
        "W = P S Q^T ~ U V,  U = P_r S_r^(1/2),  V = S_r^(1/2) Q_r^T",
        "|W - U V|^2 = sum over i > r of s_i^2",
        "r (d_out + d_in) < d_out d_in",
    ),
    symbols={"W": "h*d_h d", "U": "h*d_h r", "V": "r d", "s_i": "min(d_out, d_in)"},
    show=_show,
    code=("puna/compression/low_rank.py", "decompose"),
    test=(
        "tests/compression/test_low_rank.py",
        "test_the_squared_error_of_a_truncated_svd_is_the_sum_of_the_dropped_squares",
    ),
)
