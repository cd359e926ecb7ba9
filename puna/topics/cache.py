"""The key-value cache: what a token's keys and values take, so that the tokens before it are not read again."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from puna.arch.attention_pattern import SlidingWindow
from puna.arch.config import ModelConfig
from puna.generation.kv_cache import KVCache
from puna.model.llama import Llama
from puna.planning.compute import forward_flops
from puna.planning.counting import kv_cache_bytes, kv_cache_bytes_per_token
from puna.report.axes import Axis
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, curves, notes_layer, relative_difference
from puna.topics.words import Words

__all__ = ["TOPIC"]

_LONG = 8_192
_LENGTHS = (100, 1_024, _LONG, 131_072)
_DRAWN = tuple(range(0, _LONG + 1, 128))
_WINDOW = SlidingWindow(window=1_024, sinks=4)


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    names = words.numbers
    numbers = _counts(subject.config, names)
    if subject.llama is not None:
        numbers = _in_steps(subject.llama, subject.ids_BT) | numbers
    ways = _ways_to_keep(subject.config, names).items()
    lines = {name: [kv_cache_bytes(config, n) for n in _DRAWN] for name, config in ways}
    x, y = Axis(label=names["length"], form="count"), Axis(label=names["cache_bytes"], form="bytes")
    return Shown.of(model=numbers, example=_example(), pictures={"cache": curves(x, y, _DRAWN, lines)})


def _ways_to_keep(config: ModelConfig, names: Mapping[str, str]) -> dict[str, ModelConfig]:
    """The model as it is, with a head of keys and values for each query head, and with a window."""
    return {
        names["own"]: config,
        names["separate"]: replace(config, n_kv_heads=config.n_heads),
        names["window"]: replace(config, pattern=_WINDOW),
    }


def _counts(config: ModelConfig, names: Mapping[str, str]) -> dict[str, Value]:
    ways = _ways_to_keep(config, names)
    grown = [[kv_cache_bytes(each, n) for each in ways.values()] for n in _LENGTHS]
    before, long = (forward_flops(config, n) for n in (_LONG - 1, _LONG))
    return {
        "cache_bytes_per_token": kv_cache_bytes_per_token(config),
        "separate_cache_bytes_per_token": kv_cache_bytes_per_token(replace(config, n_kv_heads=config.n_heads)),
        "reread_flops": long.layers + long.head // _LONG,
        "step_flops": long.layers - before.layers + long.head // _LONG,
        "cache_bytes": Grid(rows=[f"n = {n:,}" for n in _LENGTHS], columns=list(ways), values=grown),
    }


def _in_steps(llama: Llama, ids_BT: Tensor) -> dict[str, Value]:
    """The text read once in whole, and once token by token with a cache."""
    tokens = ids_BT.shape[1]
    cache = KVCache(llama.config, tokens, dtype=llama.dtype)
    steps = [llama.hidden(each_B1, cache=cache) for each_B1 in ids_BT.split(1, dim=1)]
    whole = llama.hidden(ids_BT)
    return {
        "allocated_bytes": cache.bytes,
        "planned_bytes": kv_cache_bytes(llama.config, tokens, bytes_per_number=llama.dtype.itemsize),
        "cached_difference": relative_difference(torch.cat(steps, dim=1), whole),
    }


def _example() -> dict[str, Value]:
    """The notes' layer with 2 groups, and with a head of keys and values for every head."""
    grouped, separate = notes_layer(kv_heads=2), notes_layer(kv_heads=8)
    few, many = kv_cache_bytes_per_token(grouped), kv_cache_bytes_per_token(separate)
    return {
        "cache_bytes_per_token": few,
        "separate_cache_bytes_per_token": many,
        "times_smaller": many / few,
        "text_cache_bytes": kv_cache_bytes(grouped, grouped.max_seq_len),
        "separate_text_cache_bytes": kv_cache_bytes(separate, separate.max_seq_len),
    }


TOPIC = Topic(
    name="cache",
    formula=("bytes = 2 L g d_h n c,  for each sequence", "in a window w with s sinks:  min(n, w + s) in place of n"),
    symbols={"2": "K, V", "L": "L", "g": "g", "d_h": "d_h", "n": "n", "c": "bytes"},
    show=_show,
    code=("puna/planning/counting.py", "kv_cache_bytes"),
    test=("tests/generation/test_kv_cache.py", "test_allocated_bytes_are_the_formula"),
)
