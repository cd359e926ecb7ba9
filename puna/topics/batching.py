"""Batching: rows side by side are one product, and the weights are read once for all of them."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from puna.generation.kv_cache import KVCache
from puna.model.linears.group import project_together
from puna.model.linears.kind import dense_linear
from puna.model.llama import Llama
from puna.planning.compute import forward_flops
from puna.planning.hardware import CARDS
from puna.report.axes import Axis
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, curves, relative_difference
from puna.topics.words import Words

__all__ = ["TOPIC"]

_BATCHES = (1, 2, 4, 8, 16, 32)
_ROUNDS, _SECONDS = 3, 0.05  # a step of each batch is repeated for so long, in turn
_WIDTH = 2048  # of the single Linear, as in `puna doctor`
_ROWS = 4  # of which a batch is compared with them one by one
_CARDS = ("T4", "RTX 4090", "A100 80GB", "H100")


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    numbers: dict[str, Value] = {"step_flops": forward_flops(subject.config, seq=1).total}
    linear, linear_rates = _of_one_linear(words)
    rates = {words.numbers["linear"]: linear_rates, words.numbers["ideal"]: [float(each) for each in _BATCHES]}
    if subject.llama is not None:
        found, model_rates = _of_a_model(subject.llama, subject.ids, words)
        numbers |= found
        rates = {words.numbers["model"]: model_rates} | rates
    chart = curves(
        Axis(label=words.numbers["batch"], form="count", is_log=True),
        Axis(label=words.numbers["times_of_one"], is_log=True),
        _BATCHES,
        {name: [rate / each[0] for rate in each] for name, each in rates.items()},
    )
    return Shown.of(model=numbers, linear=linear, cards=_cards(words), pictures={"batching": chart})


def _of_a_model(llama: Llama, ids: Sequence[int], words: Words) -> tuple[dict[str, Value], list[float]]:
    """Reading the text a token at a time, as generation does, so many copies side by side; and that rows never meet."""
    turned_BT = torch.tensor([[*ids[row % len(ids) :], *ids[: row % len(ids)]] for row in range(_ROWS)])
    rates = _per_second(partial(_steps, llama, ids))
    difference = _rows_difference(llama, turned_BT)
    return {"rows_difference": difference, "rates": _grid(rates, "tokens_per_second", words)}, rates


def _of_one_linear(words: Words) -> tuple[dict[str, Value], list[float]]:
    linear, x_BD = dense_linear(torch.randn(_WIDTH, _WIDTH)), torch.randn(_BATCHES[-1], _WIDTH)

    def product(x_BD: Tensor) -> Tensor:
        return project_together(x_BD, linear)[0]

    def products(batch: int) -> Iterator[None]:
        while True:
            product(x_BD[:batch])
            yield

    rates = _per_second(products)
    linear.double()  # sums of so many products, which float32 rounds one way in a batch and another way in a row
    difference = _rows_difference(product, x_BD.double())
    return {"rows_difference": difference, "rates": _grid(rates, "vectors_per_second", words)}, rates


def _steps(llama: Llama, ids: Sequence[int], batch: int) -> Iterator[None]:
    """Each step reads one token of every row and gives the logits of the next."""
    while True:
        cache = KVCache(llama.config, len(ids), batch=batch, dtype=llama.dtype, device=llama.device)
        for index in ids:
            llama.lm_head(llama.hidden(torch.full((batch, 1), index, device=llama.device), cache=cache))
            yield


def _per_second(steps: Callable[[int], Iterator[None]]) -> list[float]:
    """Rows a second of each batch, by its quickest step: what else the machine does only ever slows one down."""
    running, best = {batch: steps(batch) for batch in _BATCHES}, dict.fromkeys(_BATCHES, math.inf)
    for _ in range(_ROUNDS):
        for batch, step in running.items():
            until = time.perf_counter() + _SECONDS
            while (began := time.perf_counter()) < until:
                next(step)
                best[batch] = min(best[batch], time.perf_counter() - began)
    return [batch / seconds for batch, seconds in best.items()]


def _rows_difference(call: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    """Between the results of a batch and those of its rows one by one."""
    return relative_difference(call(rows), torch.cat([call(row) for row in rows.split(1)]))


def _grid(rates: Sequence[float], unit: str, words: Words) -> Grid:
    rows = zip(_BATCHES, rates, strict=True)
    return Grid.of(
        words.of(unit, "times_of_one"),
        {f"{words.numbers['batch']} {batch}": [rate, rate / rates[0]] for batch, rate in rows},
    )


def _cards(words: Words) -> dict[str, Value]:
    """A 16-bit weight is 2 bytes and 2 FLOPs for each row, so that a product of B rows does B FLOPs for each byte."""
    cards = {card.name: (card.flops_per_second, card.bytes_per_second) for card in CARDS if card.name in _CARDS}
    rows = {name: [flops / 1e12, size / 1e9, round(flops / size)] for name, (flops, size) in cards.items()}
    return {"compute_bound": Grid.of(words.of("teraflops", "gigabytes", "rows"), rows)}


TOPIC = Topic(
    name="batching",
    formula=("X = (x_1; ...; x_B)", "Y = X W^T,  y_b = W x_b"),
    symbols={"B": "1 ... 32", "x_b": "d", "W": "h*d_h d", "y_b": "h*d_h"},
    show=_show,
    code=("puna/model/llama.py", "Llama"),
    test=("tests/model/test_llama.py", "test_a_batch_gives_the_results_of_its_rows"),
)
