"""Sparse attention: a token asks only some of those before it, its neighbours or its own block."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from puna.arch.attention_pattern import Blocks, Causal, LayerPattern, SlidingWindow
from puna.arch.config import ModelConfig
from puna.model.attention import Attend
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.model.visibility import attention_mask, ways_to_attend
from puna.model.walk import AttentionView, look_inside, walk
from puna.planning.counting import attended_pairs
from puna.report.heat import HeatMap
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, attended_by_hand, relative_difference
from puna.topics.words import Words

__all__ = ["TOPIC"]

_WINDOW, _BLOCK = 3, 4  # tokens, where pairs are shown one by one
_WIDE = 256  # tokens of a window or a block, where they are counted
_COUNTED = (2_048, 8_192, 32_768)
_SMALL = ModelConfig(vocab_size=64, dim=32, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, max_seq_len=12)


def _show(subject: Subject, words: Words) -> Shown:
    patterns = _patterns(_WINDOW, _BLOCK)
    seen = {
        f"{place} {token}": [" | ".join(_seen(pattern, place)) for pattern in patterns.values()]
        for place, token in enumerate(subject.pieces)
    }
    numbers: dict[str, Value] = {"seen": Grid.of(words.of(*patterns), seen)}
    if subject.llama is not None:
        with torch.no_grad():
            numbers |= _inside(look_inside(next(walk(subject.llama, subject.ids_BT))), subject.config)
    return Shown.of(
        model=numbers,
        reach=_reach(patterns, words),
        example=_example(words),
        pictures={f"sparse-attention-{name}": _mask(pattern, words) for name, pattern in patterns.items()},
    )


def _patterns(window: int, block: int) -> dict[str, LayerPattern]:
    return {
        "causal": Causal(), "window": SlidingWindow(window=window), "sinks": SlidingWindow(window=window, sinks=1),
        "blocks": Blocks(size=block), "shifted": Blocks(size=block, shifted=True),
    }  # fmt: skip


def _seen(pattern: LayerPattern, query: int) -> Iterator[str]:
    """The positions that a token sees, of each part of the heads: `0 5-7`."""
    for part in pattern.parts:
        keys = [key for key in range(query + 1) if part.allows(query, key)]
        first, last = ([key for key in keys if key + side not in keys] for side in (-1, 1))
        yield " ".join(str(a) if a == z else f"{a}-{z}" for a, z in zip(first, last, strict=True))


def _mask(pattern: LayerPattern, words: Words) -> HeatMap:
    """Of the small model's tokens: the share of heads in which a row's token sees a column's."""
    index_T = torch.arange(_SMALL.max_seq_len)
    shares_TS = attention_mask(pattern, _SMALL.n_heads, index_T, index_T)[0].float().mean(0).tolist()
    places = [str(place) for place in index_T.tolist()]
    return HeatMap(
        rows=places, columns=places, values=[[None if each == 1 else each for each in row] for row in shares_TS],
        columns_label=words.numbers["read"], key=words.numbers["heads"], whole=words.numbers["all"],
    )  # fmt: skip


def _inside(view: AttentionView, config: ModelConfig) -> dict[str, Value]:
    """The first layer's queries, keys and values: in a window by hand, and piece by piece as the notes cut them."""
    qkv, index_T = (view.q_BHTE, view.k_BGSE, view.v_BGSE), torch.arange(view.q_BHTE.shape[2])
    ways = {name: _way(config, each, len(index_T)) for name, each in _patterns(_WINDOW, _BLOCK).items()}
    seen_HTS = attention_mask(SlidingWindow(window=_WINDOW), 1, index_T, index_T)[0]
    k_HSE, v_HSE = (x[0].repeat_interleave(config.heads_per_group, dim=0) for x in (view.k_BGSE, view.v_BGSE))
    scores_HTS, weights_HTS, y_HTE = attended_by_hand(view.q_BHTE[0], k_HSE, v_HSE, seen_HTS, config.score_factor)
    cut_HTS = _cut_by_hand(scores_HTS, seen_HTS)
    pieces = zip(*(x.split(_BLOCK, dim=2) for x in qkv), strict=True)
    joined = torch.cat([ways["causal"](q, k, v, None) for q, k, v in pieces], dim=2)
    return {
        "row_sums": weights_HTS[0].sum(-1).tolist(),
        "row_sums_cut_after": cut_HTS[0].sum(-1).tolist(),
        "dense_difference": relative_difference(y_HTE, ways["window"](*qkv, None)[0]),
        "pieces_difference": relative_difference(joined, ways["blocks"](*qkv, None)),
    }


def _way(config: ModelConfig, pattern: LayerPattern, tokens: int) -> Attend:
    """How the engine attends by a pattern."""
    return ways_to_attend(replace(config, pattern=pattern), tokens, None, None, torch.device("cpu"), torch.float32)[0]


def _cut_by_hand(scores_HTS: Tensor, seen_HTS: Tensor) -> Tensor:
    """As in the notes: a softmax over all, then cut to the neighbours."""
    return scores_HTS.softmax(-1) * seen_HTS


def _reach(patterns: Mapping[str, LayerPattern], words: Words) -> dict[str, Value]:
    """How far back an output still has a gradient, after one layer to all four."""
    felt = {name: _felt(pattern) for name, pattern in patterns.items()}
    tokens = torch.arange(_SMALL.max_seq_len)
    distance_TS, is_across_TS = tokens[:, None] - tokens, tokens[:, None] // _BLOCK != tokens // _BLOCK
    farthest = {
        words.numbers[name]: [int(distance_TS[each_TS > 0].max()) for each_TS in layers]
        for name, layers in felt.items()
    }
    return {
        "gradient_from_later_tokens": float(max(layers[-1].triu(1).max() for layers in felt.values())),
        "gradient_across_blocks": float(felt["blocks"][-1][is_across_TS].max()),
        "gradient_across_shifted_blocks": float(felt["shifted"][-1][is_across_TS].max()),
        "reach_tokens": Grid.of([f"{words.numbers['layers']} {n + 1}" for n in range(_SMALL.n_layers)], farthest),
    }


def _felt(pattern: LayerPattern) -> list[Tensor]:
    """After each layer: how much a row's output feels a column's input, (T, T); every row reads a copy of its own."""
    llama, tokens = initialise(Llama(replace(_SMALL, pattern=pattern)), seed=0), _SMALL.max_seq_len
    rotate, way = llama.position.rotation(torch.arange(tokens)[None]), _way(_SMALL, pattern, tokens)
    start_TTD = torch.randn(1, tokens, _SMALL.dim).repeat(tokens, 1, 1).requires_grad_()
    x_TTD, found = start_TTD, []
    for block in llama.layers:
        x_TTD = block(x_TTD, rotate, way, None)
        (gradient_TTD,) = torch.autograd.grad(x_TTD.diagonal().sum(), start_TTD, retain_graph=True)
        found.append(gradient_TTD.abs().amax(-1))
    return found


def _example(words: Words) -> dict[str, Value]:
    """Pairs of a head, exactly, for windows and blocks of 256; and what the notes' g blocks would take, n^2 / g."""
    pairs = {words.numbers["square"]: [n * n for n in _COUNTED]}
    for name, pattern in _patterns(_WIDE, _WIDE).items():
        config = replace(_SMALL, n_layers=1, pattern=pattern)
        pairs[words.numbers[name]] = [attended_pairs(config, n) // config.n_heads for n in _COUNTED]
    return {
        "notes_block_pairs": [n * _WIDE for n in _COUNTED],
        "pairs": Grid.of([f"n = {n:,}" for n in _COUNTED], pairs),
    }


TOPIC = Topic(
    name="sparse-attention",
    formula=(
        "A_ij = softmax over j in N(i) of Q_i K_j / sqrt(d_h),  else 0",
        "window: N(i) = {j : 0 <= i - j < w},  n w - w (w - 1) / 2 pairs",
        "blocks: N(i) = {j <= i : floor(j / b) = floor(i / b)},  n (b + 1) / 2 pairs where b divides n",
        "all before: N(i) = {j <= i},  n (n + 1) / 2 pairs",
    ),
    symbols={"A": "h n n", "N(i)": "tokens", "w": "tokens", "b": "tokens"},
    show=_show,
    code=("puna/arch/attention_pattern.py", "SlidingWindow"),
    test=("tests/model/test_visibility.py", "test_a_window_reaches_exactly_as_far_as_its_layers_allow"),
)
