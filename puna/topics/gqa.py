"""Grouped-query attention: query heads in groups, each group with one head of keys and values."""

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_shapes
from puna.model.attention import Attention, attend_causally
from puna.model.walk import look_inside, walk
from puna.planning.compute import forward_flops
from puna.planning.counting import group_parameters, kv_cache_bytes_per_token
from puna.report.drawing import HeadsDrawing
from puna.topics.subject import Subject
from puna.topics.topic import Shown, Topic, Value, notes_layer
from puna.topics.words import Words

__all__ = ["TOPIC"]


@torch.no_grad()
def _show(subject: Subject, _: Words) -> Shown:
    grouped, separate = notes_layer(kv_heads=2), notes_layer(kv_heads=8)
    numbers = _counts(subject.config)
    if subject.llama is not None:
        stage = next(walk(subject.llama, subject.ids_BT))
        view = look_inside(stage)
        k_BHSE, v_BHSE = (
            each.repeat_interleave(subject.config.heads_per_group, dim=1) for each in (view.k_BGSE, view.v_BGSE)
        )
        again_BHTE = stage.attend(view.q_BHTE, k_BHSE, v_BHSE, view.sink_H)
        numbers["repeated_difference"] = float((again_BHTE - view.y_BHTE).abs().max())
    drawn = {"gqa": subject.config, "gqa-example": grouped}
    return Shown.of(
        model=numbers,
        example=_example(grouped, separate),
        pictures={name: HeadsDrawing(n_heads=c.n_heads, n_kv_heads=c.n_kv_heads) for name, c in drawn.items()},
    )


def _counts(config: ModelConfig) -> dict[str, Value]:
    return {
        "heads_by_group": [
            f"{g}: {g * config.heads_per_group}-{(g + 1) * config.heads_per_group - 1}"
            for g in range(config.n_kv_heads)
        ],
        "attention_parameters": group_parameters(config, "attention"),
        "cache_bytes_per_token": kv_cache_bytes_per_token(config),
    }


def _example(grouped: ModelConfig, separate: ModelConfig) -> dict[str, Value]:
    """100 tokens: the shapes, what a multi-head layer would take instead, and the concatenation as a sum over heads."""
    shapes = linear_shapes(grouped)
    work, wide = (forward_flops(config, grouped.max_seq_len, full_square=True) for config in (grouped, separate))
    numbers: dict[str, Value] = {f"{name}_shape": list(shapes[f"{name}_proj"]) for name in "qkvo"}
    attention, x_BTD = Attention(grouped, layer=0), torch.randn(1, grouped.max_seq_len, grouped.dim)
    heads: list[Tensor] = []
    hook = attention.o_proj.register_forward_pre_hook(lambda _, given: heads.append(given[0][0]))
    y_TD = attention(x_BTD, lambda x: x, attend_causally, None)[0]
    hook.remove()
    return numbers | _counts(grouped) | {
        "separate_attention_parameters": group_parameters(separate, "attention"),
        "separate_cache_bytes_per_token": kv_cache_bytes_per_token(separate),
        "kv_projection_macs": (work.linears["k_proj"] + work.linears["v_proj"]) // 2,
        "separate_kv_projection_macs": (wide.linears["k_proj"] + wide.linears["v_proj"]) // 2,
        "score_macs": work.attention // 4,  # the other half is P V, and a product and a sum are two
        "separate_score_macs": wide.attention // 4,
        "y_shape": list(y_TD.shape),
        "concatenation_difference": float((y_TD - _summed_by_hand(heads[0], attention.o_proj.weight, grouped)).abs().max()),
    }  # fmt: skip


def _summed_by_hand(heads_TD: Tensor, weight_oi: Tensor, config: ModelConfig) -> Tensor:
    """Concat(head_1 ... head_h) W_O, one head at a time."""
    pairs = zip(heads_TD.split(config.head_dim, dim=-1), weight_oi.split(config.head_dim, dim=-1), strict=True)
    return torch.stack([head_TE @ columns_oE.T for head_TE, columns_oE in pairs]).sum(0)


TOPIC = Topic(
    name="gqa",
    formula=(
        "head_i = softmax(Q_i K_G^T / sqrt(d_h) + M) V_G,  G = floor(i / q),  q = h / g",
        "Y = Concat(head_0 ... head_(h-1)) W_O",
    ),
    symbols={"Q_i": "n d_h", "K_G, V_G": "n d_h", "q": "q", "W_O": "d h*d_h"},
    show=_show,
    code=("puna/model/attention.py", "Attention"),
    test=("tests/model/test_attention.py", "test_grouped_heads_equal_full_heads_whose_key_and_value_rows_are_repeated"),
)
