"""Seconds of a training step on a processor, from the product rates that were measured on it.

    seconds = products / rate(type, rows) + attention / (ATTENTION_SHARE rate) + made bytes TRAFFIC / read rate

A product's rate follows its type and its rows; an adapter's thin factors are as slow as products of few rows. Where the
gradient of an input or of a weight is a slower product than the output (some processors form dy W in 16 bits fifty times
as slowly as x W^T), it counts as such. An int8 base multiplies in int8 only on the way forward, if at all. Attention by
SDPA is slower than a large product; with a mask it forms every pair, else the visible ones. What a step makes (a layer's
tensors, logits, weights made dense, gradients and moments) costs far more than reading it once: it is written, read on the
way back, and its memory is mapped anew.
Both constants: docs/plan.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import log

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_shapes
from puna.planning.compute import forward_flops, training_flops
from puna.planning.counting import linear_parameters, lora_parameters, parameter_count
from puna.planning.own_loop import LOSS_CHUNK_LEAST_TOKENS, LOSS_CHUNK_LOGITS
from puna.planning.settings import FullTraining, Inference, LoraTraining, Settings

__all__ = ["ATTENTION_SHARE", "TRAFFIC", "Rates", "gradient_costs", "product_rate", "step_seconds"]

ATTENTION_SHARE = 0.68
"""Attention's rate over that of large products of the same type."""

TRAFFIC = 31.0
"""What a byte that a step makes costs, in reads of a byte of large memory."""

_THIN_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a machine can do: product FLOP per second by type and rows, bytes of memory read per second.

    gradient_flops: of a Linear's `output`, `input` gradient and `weight` gradient by type, all three of one shape.
    """

    flops_by_rows: Mapping[str, Mapping[str, float]]
    gradient_flops: Mapping[str, Mapping[str, float]]
    read_bytes_per_second: float


def product_rate(rates: Rates, kind: str, rows: int) -> float:
    """FLOP per second of products of so many rows: between two measured ones in proportion to the logarithm, beyond as there."""
    known = sorted((int(count), rate) for count, rate in rates.flops_by_rows[kind].items())
    for (fewer, low), (more, high) in pairwise(known):
        if fewer <= rows < more:
            return low + (high - low) * log(rows / fewer) / log(more / fewer)
    return known[0][1] if rows < known[0][0] else known[-1][1]


def gradient_costs(rates: Rates, kind: str) -> tuple[float, float]:
    """Seconds of the products that give an input's and a weight's gradient, in those of the output's; 1 at the least, as
    where the constants were fixed.
    """
    measured = rates.gradient_flops[kind]
    return max(1.0, measured["output"] / measured["input"]), max(1.0, measured["output"] / measured["weight"])


def step_seconds(config: ModelConfig, settings: Settings, rates: Rates, micro_batches: int = 1) -> float:
    """Predicted seconds of an optimizer step of so many micro-batches of `settings`, each forward and backward."""
    assert not isinstance(settings.method, Inference), "generating is limited by reading"
    trained, again = _trained(config, settings), int(settings.checkpointing)
    batch = _product_seconds(config, settings, rates, again) + _attention_seconds(config, settings, rates, again)
    made = _made_bytes(config, settings, again)
    return micro_batches * batch + TRAFFIC * (micro_batches * made + 4 * trained) / rates.read_bytes_per_second


def _kind(settings: Settings) -> str:
    return "float32" if settings.product_bytes == 4 else "bfloat16"


def _product_seconds(config: ModelConfig, settings: Settings, rates: Rates, again: int) -> float:
    """The base's Linears and the head, then what an adapter adds."""
    forward, is_full = forward_flops(config, settings.seq, settings.batch), isinstance(settings.method, FullTraining)
    kind, linears = _kind(settings), sum(forward.linears.values())
    dense = product_rate(rates, kind, settings.tokens)
    ahead = product_rate(rates, "int8", settings.tokens) if settings.integer_products else dense
    of_input, of_weight = gradient_costs(rates, kind)
    back, back_cost = (2, of_input + of_weight) if is_full else (1, of_input)
    seconds = (1 + again) * linears / ahead + back_cost * linears / dense + (1 + back_cost) * forward.head / dense
    attention = (3 + again) * forward.attention
    rest = training_flops(config, settings) - (1 + back + again) * linears - (1 + back) * forward.head - attention
    return seconds + rest * (1 + of_input + of_weight) / 3 / product_rate(rates, kind, _THIN_ROWS)


def _attention_seconds(config: ModelConfig, settings: Settings, rates: Rates, again: int) -> float:
    """Forward, and twice that on the way back; again where it is formed again."""
    flops = forward_flops(config, settings.seq, settings.batch, full_square=settings.packed).attention
    return (3 + again) * flops / (ATTENTION_SHARE * product_rate(rates, _kind(settings), settings.tokens))


def _made_bytes(config: ModelConfig, settings: Settings, again: int) -> float:
    """Bytes of the tensors that one micro-batch makes; forming a layer again is a third of its way forth and back."""
    c, tokens = settings.product_bytes, settings.tokens
    numbers = 4 * config.dim + 2 * config.q_dim + 2 * config.kv_dim + 3 * config.ffn_dim
    if isinstance(settings.method, LoraTraining):
        numbers += _adapter_numbers(config, settings, settings.method)
    layers = c * tokens * config.n_layers * numbers * (1 + again / 3)
    return layers + _loss_bytes(config, settings) + _dense_bytes(config, settings, again)


def _adapter_numbers(config: ModelConfig, settings: Settings, method: LoraTraining) -> int:
    """A token's numbers that an adapter makes in a layer: its middle; its output, where it is not formed within the base's
    product; a DoRA's scaled output, and that scaled on the way back.
    """
    shapes = linear_shapes(config)
    outputs = int(settings.base in ("int8", "nf4") or method.starts) + 2 * int(method.magnitudes)
    return sum(method.rank_of(name) + outputs * shapes[name][0] for name in method.targets if name in shapes)


def _loss_bytes(config: ModelConfig, settings: Settings) -> int:
    """Logits; and where the head trains its whole gradient for every chunk of them."""
    tokens, logits = settings.tokens, 4 * settings.tokens * config.vocab_size
    if not isinstance(settings.method, FullTraining):
        return logits
    chunk = max(LOSS_CHUNK_LEAST_TOKENS, LOSS_CHUNK_LOGITS // config.vocab_size)
    return logits + 4 * -(-tokens // chunk) * config.vocab_size * config.dim


def _dense_bytes(config: ModelConfig, settings: Settings, again: int) -> int:
    """Weights made dense for a product: rounded ones for each, unless int8 multiplies as it is, and autocast's copies."""
    is_made = settings.base in ("int8", "nf4") or settings.autocast
    passes = 0 if not is_made else 1 if settings.integer_products else 2 + again
    return passes * settings.product_bytes * linear_parameters(config)


def _trained(config: ModelConfig, settings: Settings) -> int:
    method = settings.method
    if not isinstance(method, LoraTraining):
        return parameter_count(config)
    return lora_parameters(config, method.rank, method.targets, method.ranks, magnitudes=method.magnitudes)
