"""Attention: every token asks all before it, and takes from each as much as their product says."""

import torch
from torch import Tensor
from torch.nn import functional as F

from puna.model.attention import attend_causally
from puna.model.visibility import attention_mask
from puna.model.walk import AttentionView, look_inside, walk
from puna.report.heat import HeatMap
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, attended_by_hand
from puna.topics.words import Words

__all__ = ["TOPIC"]

_HEADS = 4  # into which the example's 64 are split the second time


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    example = _example()
    if subject.llama is None:
        return Shown.of(example=example)
    view, rows = look_inside(next(walk(subject.llama, subject.ids_BT))), list(subject.pieces)
    index_T = torch.arange(len(rows))
    seen_HTS = attention_mask(subject.config.pattern.of_layer(0), subject.config.n_heads, index_T, index_T)[0]
    numbers, weights_TS = _inside(view, seen_HTS, subject.config.score_factor, rows)
    picture = HeatMap(
        rows=rows, columns=rows, values=weights_TS.tolist(), columns_label=words.numbers["read"],
        key=words.numbers["weight"], whole=words.numbers["whole"],
    )  # fmt: skip
    return Shown.of(model=numbers, example=example, pictures={"attention": picture})


def _inside(view: AttentionView, seen_HTS: Tensor, factor: float, rows: list[str]) -> tuple[dict[str, Value], Tensor]:
    """What the first layer's first head does with the text, and its weights."""
    per_group = view.q_BHTE.shape[1] // view.k_BGSE.shape[1]
    q_HTE, k_HSE, v_HSE = view.q_BHTE[0], *(x[0].repeat_interleave(per_group, 0) for x in (view.k_BGSE, view.v_BGSE))
    scores_HTS, weights_HTS, y_HTE = attended_by_hand(q_HTE, k_HSE, v_HSE, seen_HTS, factor, view.sink_H)
    cosines_TS = _cosines_by_hand(q_HTE[0], k_HSE[0])
    numbers: dict[str, Value] = {
        "scores": Grid(rows=rows, columns=rows, values=scores_HTS[0].tolist()),
        "cosines": Grid(rows=rows, columns=rows, values=cosines_TS.tolist()),
        "weights": Grid(rows=rows, columns=rows, values=weights_HTS[0].tolist()),
        "row_sums": weights_HTS[0].sum(-1).tolist(),
        "weight_on_later_tokens": float(weights_HTS.triu(1).max()),
        "output_difference": float((y_HTE - view.y_BHTE[0]).abs().max()),
    }
    return numbers, weights_HTS[0]


def _example() -> dict[str, Value]:
    """Q, K, V of (4, 5, 64) as the notes have them; then the engine's causal attention, as one head and as four."""
    q_BTE, k_BTE, v_BTE = torch.rand(3, 4, 5, 64)
    everything = torch.ones(4, 5, 5, dtype=torch.bool)
    scores, weights, output = attended_by_hand(q_BTE, k_BTE, v_BTE, everything, 64**-0.5)
    _, masked_weights, masked = attended_by_hand(q_BTE, k_BTE, v_BTE, everything.tril(), 64**-0.5)
    one_head = attend_causally(*(x[:, None] for x in (q_BTE, k_BTE, v_BTE)))[:, 0]
    q, k, v = (x.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for x in (q_BTE, k_BTE, v_BTE))
    in_heads = attend_causally(q, k, v).transpose(1, 2).flatten(2)
    return {
        "scores_shape": list(scores.shape),
        "weights_shape": list(weights.shape),
        "output_shape": list(output.shape),
        "masked_output_shape": list(masked.shape),
        "heads_output_shape": list(in_heads.shape),
        "unmasked_weight_on_later_tokens": float(weights.triu(1).max()),
        "masked_weight_on_later_tokens": float(masked_weights.triu(1).max()),
        "masked_difference": float((masked - one_head).abs().max()),
    }


def _cosines_by_hand(q_TE: Tensor, k_SE: Tensor) -> Tensor:
    return F.normalize(q_TE, dim=-1) @ F.normalize(k_SE, dim=-1).T


TOPIC = Topic(
    name="attention",
    formula=(
        "S = Q K^T / sqrt(d_h) + M,  M_ij = 0 where j <= i, else -inf",
        "P = softmax over j of S_ij",
        "c_i = sum over j <= i of P_ij v_j",
    ),
    symbols={"Q": "n h d_h", "K, V": "n g d_h", "S, P": "h n n", "c": "n h d_h"},
    show=_show,
    code=("puna/model/attention.py", "attend_where"),
    test=("tests/model/test_attention.py", "test_fused_attention_equals_the_explicit_loop"),
)
