"""Quantisation: weights as codes of few bits and a scale for each row or block; what that saves, and what it changes."""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_path, linear_shapes
from puna.arch.presets import find_preset
from puna.arch.rounding import BLOCK_BYTES, BLOCK_NUMBERS, NF4_NUMBERS, ROUNDINGS, Rounding
from puna.compression.rounding import round_linears
from puna.evaluation.agreement import compare_logits
from puna.model.linears.int8 import Int8Linear
from puna.model.linears.kind import dense_weight
from puna.model.linears.rounded import rounded
from puna.model.llama import Llama
from puna.model.quantization import NF4_LEVELS, dequantize_nf4, quantize_nf4, quantize_rows_int8
from puna.model.surgery import get_linear
from puna.planning.memory import weight_bytes
from puna.planning.settings import BASES
from puna.report.axes import Axis
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Rows, Shown, Topic, Value, curves, relative_difference
from puna.topics.words import Words

__all__ = ["TOPIC"]

_PATH = linear_path(0, "q_proj")
_WIDTH, _TOKENS, _OUTLIER = 1024, 64, 60.0


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    numbers: dict[str, Value] = {"stored": _stored(subject.config, words)}
    if subject.llama is not None:
        numbers["weights"] = _weights(dense_weight(get_linear(subject.llama, _PATH)), words)
        if not subject.config.altered_parts:  # a variant for study is not rounded
            numbers["whole_model"] = _predictions(subject.llama, subject.ids_BT, words)
    codes = list(range(len(NF4_LEVELS)))
    levels = {"NF4": NF4_LEVELS, words.numbers["even"]: [2 * code / codes[-1] - 1 for code in codes]}
    chart = curves(Axis(label=words.numbers["code"]), Axis(label=words.numbers["level"]), codes, levels)
    return Shown.of(
        model=numbers,
        gaussian=_gaussian(words),
        llama_3_8b={"stored": _stored(find_preset("llama-3-8b").config, words)},
        pictures={"quantisation": chart},
    )


def _stored(config: ModelConfig, words: Words) -> Grid:
    """Bytes of a model whose blocks' Linears are stored so, and everything else in 16 bits (32 beside float32)."""
    sizes = {base: weight_bytes(config, base) for base in BASES}
    rows: Rows = {base: [size, size / sizes["float32"]] for base, size in sizes.items()}
    return Grid.of(words.of("weight_bytes", "of_float32"), rows)


def _weights(weight_oi: Tensor, words: Words) -> Grid:
    """Bytes a number of one weight, and its relative error in percent, root mean square."""
    rows = dict[str, list[float]]()
    for to in ROUNDINGS:
        if _fits(to, weight_oi.shape[1]):
            made = rounded(weight_oi, to)
            size = sum(stored.nbytes for stored in made.buffers())
            error = float((made.dense_weight() - weight_oi).norm() / weight_oi.norm())
            rows[to] = [size / weight_oi.numel(), 100 * error]
    return Grid.of(words.of("bytes_per_number", "error_percent"), rows)


def _fits(to: Rounding, width: int) -> bool:
    return to not in BLOCK_BYTES or width % BLOCK_NUMBERS == 0


def _predictions(llama: Llama, ids_BT: Tensor, words: Words) -> Grid:
    """What the text's predictions become when every Linear of the blocks is rounded."""
    rows = dict[str, list[float]]()
    for to in ROUNDINGS:
        if all(_fits(to, d_in) for _, d_in in linear_shapes(llama.config).values()):
            model = deepcopy(llama)
            round_linears(model, to)
            found = compare_logits(llama, model, ids_BT)
            rows[to] = [found.kl_nats, found.max_logit_difference, 100 * found.top1_agreement]
    return Grid.of(words.of("kl_nats", "logit_change", "same_top_percent"), rows)


def _gaussian(words: Words) -> dict[str, Value]:
    """The laws, on a weight and inputs of normally distributed numbers."""
    weight_oi, x_Ni = torch.randn(_WIDTH, _WIDTH), torch.randn(_TOKENS, _WIDTH)
    linear = Int8Linear.from_dense(weight_oi)
    codes, maxima = quantize_nf4(weight_oi)
    nf4_error = (dequantize_nf4(codes, maxima, weight_oi.shape) - weight_oi).view(-1, NF4_NUMBERS)
    by_hand, exact = _int8_by_hand(linear, x_Ni), _product_by_hand(weight_oi, x_Ni)
    loud, quiet = x_Ni.clone(), x_Ni.clone()
    loud[:, 0] *= _OUTLIER
    quiet[:, 0] = 0
    off = linear(loud) - _product_by_hand(weight_oi, loud)
    return {
        "weights": _weights(weight_oi, words),
        "int8_worst_steps": float(((linear.dense_weight() - weight_oi) / linear.scale).abs().max()),
        "nf4_worst_of_maximum": float((nf4_error / maxima[:, None]).abs().max()),
        "nf4_widest_half_gap": max(high - low for low, high in pairwise(NF4_LEVELS)) / 2,
        "int8_product_difference": relative_difference(linear(x_Ni), by_hand),
        "int8_product_percent": 100 * float((linear(x_Ni) - exact).norm() / exact.norm()),
        "int8_outlier_percent": 100 * float(off.norm() / _product_by_hand(weight_oi, quiet).norm()),
    }


def _int8_by_hand(linear: Int8Linear, x_Ni: Tensor) -> Tensor:
    """s_w s_x (W_q x_q), the codes multiplied in float64, which holds their sums exactly."""
    x_q, scale_N1 = quantize_rows_int8(x_Ni)
    return scale_N1.double() * linear.scale.T.double() * (x_q.double() @ linear.weight.T.double())


def _product_by_hand(weight_oi: Tensor, x_Ni: Tensor) -> Tensor:
    return x_Ni.double() @ weight_oi.T.double()


TOPIC = Topic(
    name="quantisation",
    formula=(
        "int8:  W_q = round(W / s_w),  s_w = max|row| / 127;  x_q and s_x alike for each token",
        "       y = s_w s_x (W_q x_q), summed in int32",
        "NF4:   q = the nearest of 16 levels to w / a,  a = max|w| of 64 numbers",
    ),
    symbols={"W_q": "h*d_h d", "s_w": "h*d_h", "x_q": "n d", "s_x": "n", "a": "64"},
    show=_show,
    code=("puna/model/quantization.py", "quantize_nf4"),
    test=(
        "tests/model/test_quantization.py",
        "test_gaussian_weights_lose_9_20_percent_and_double_quantisation_hardly_more",
    ),
)
