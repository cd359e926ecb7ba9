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
from puna.report.curves import LineChart, Series
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Part, Shown, Symbol, Topic, Value
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
    linear, times = _of_one_linear(words), dict[str, list[float]]()
    parts = [
        Part(name="model", numbers=numbers),
        Part(name="linear", numbers=linear),
        Part(name="cards", numbers=_cards(words)),
    ]
    if subject.llama is not None:
        numbers |= _of_a_model(subject.llama, subject.ids, words)
        times[words.numbers["model"]] = _column(numbers["rates"], 1)
    times |= {
        words.numbers["linear"]: _column(linear["rates"], 1),
        words.numbers["ideal"]: [float(each) for each in _BATCHES],
    }
    chart = LineChart(
        x=Axis(label=words.numbers["batch"], form="count", is_log=True),
        y=Axis(label=words.numbers["times_of_one"], is_log=True),
        series=[Series(name=name, x=_BATCHES, y=values) for name, values in times.items()],
    )
    return Shown(parts=parts, pictures={"batching": chart})


def _of_a_model(llama: Llama, ids: Sequence[int], words: Words) -> dict[str, Value]:
    """Reading the text a token at a time, as generation does, so many copies side by side; and that rows never meet."""
    turned_BT = torch.tensor([[*ids[row % len(ids) :], *ids[: row % len(ids)]] for row in range(_ROWS)])
    rates = _per_second(partial(_steps, llama, ids))
    return {
        "rows_difference": _rows_difference(llama, turned_BT),
        "rates": _rates(rates, words.numbers["tokens_per_second"], words),
    }


def _of_one_linear(words: Words) -> dict[str, Value]:
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
    return {"rows_difference": difference, "rates": _rates(rates, words.numbers["vectors_per_second"], words)}


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
    """Between the results of a batch and those of its rows one by one, relative to the largest of them."""
    together, alone = call(rows), torch.cat([call(row) for row in rows.split(1)])
    return float((together - alone).abs().max() / alone.abs().max())


def _rates(rates: Sequence[float], unit: str, words: Words) -> Grid:
    return Grid(
        rows=[f"{words.numbers['batch']} {batch}" for batch in _BATCHES],
        columns=[unit, words.numbers["times_of_one"]],
        values=[[rate, rate / rates[0]] for rate in rates],
    )


def _column(grid: Value, index: int) -> list[float]:
    assert isinstance(grid, Grid)
    return [float(row[index]) for row in grid.values]


def _cards(words: Words) -> dict[str, Value]:
    """A 16-bit weight is 2 bytes and 2 FLOPs for each row, so that a product of B rows does B FLOPs for each byte."""
    cards = [card for card in CARDS if card.name in _CARDS]
    return {
        "compute_bound": Grid(
            rows=[card.name for card in cards],
            columns=[words.numbers[name] for name in ("teraflops", "gigabytes", "rows")],
            values=[
                [
                    card.flops_per_second / 1e12,
                    card.bytes_per_second / 1e9,
                    round(card.flops_per_second / card.bytes_per_second),
                ]
                for card in cards
            ],
        )
    }


TOPIC = Topic(
    name="batching",
    formula=("X = (x_1; ...; x_B)", "Y = X W^T,  y_b = W x_b"),
    symbols=(
        Symbol(sign="B", unit="1 ... 32"),
        Symbol(sign="x_b", axes="d"),
        Symbol(sign="W", axes="h*d_h d"),
        Symbol(sign="y_b", axes="h*d_h"),
    ),
    show=_show,
    code=("puna/model/llama.py", "Llama"),
    test=("tests/model/test_llama.py", "test_a_batch_gives_the_results_of_its_rows"),
)
