"""Data weights: how much of each source is learned, how often that repeats it, and in what order the windows come."""

from collections.abc import Sequence

from puna.report.axes import Axis
from puna.report.curves import LineChart
from puna.text.mixture import Mixture, epochs, exponent_weights, integer_weights, unimax_weights
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, curves
from puna.topics.words import Words

__all__ = ["TOPIC"]

_SIZES = (20e6, 6e6, 1.5e6, 0.3e6)  # bytes
_SERVED = 30e6  # bytes
_EXPONENTS = (1.0, 0.5, 0.3, 0.0)
_CAP = 4  # epochs
_STEPS, _SHOWN_STEPS = 1_000, 24
_LLAMA_1 = {  # share in percent, epochs: arXiv:2302.13971, table 1
    "CommonCrawl": (67.0, 1.10), "C4": (15.0, 1.06), "GitHub": (4.5, 0.64), "Wikipedia": (4.5, 2.45),
    "Books": (4.5, 2.23), "ArXiv": (2.5, 1.06), "StackExchange": (2.0, 1.03),
}  # fmt: skip
_LLAMA_1_TOKENS = 1.4e12
_COLUMNS = ("billion_tokens", "percent", "repeats", "percent_if_1", "percent_if_half")


def _show(_: Subject, words: Words) -> Shown:
    return Shown.of(four_sources=_four_sources(), llama_1=_llama_1(words), pictures={"mixture": _chart(words)})


def _four_sources() -> dict[str, Value]:
    """What the rule makes of four sources, beforehand, and the order in which it serves them."""
    rules = {f"a = {a:g}": exponent_weights(_SIZES, a) for a in _EXPONENTS}
    rules[f"UniMax {_CAP}"] = unimax_weights(_SIZES, _SERVED, _CAP)
    names = [_name(size) for size in _SIZES]
    times = [epochs(weights, _SIZES, _SERVED) for weights in rules.values()]
    half = exponent_weights(_SIZES, 0.5)
    mixture = Mixture(weights=integer_weights(half))
    by_hand = _weights_by_hand(_SIZES, 0.5)
    return {
        "served_bytes": int(_SERVED),
        "weights": Grid(rows=names, columns=list(rules), values=list(zip(*rules.values(), strict=True))),
        "epochs": Grid(rows=names, columns=list(rules), values=list(zip(*times, strict=True))),
        "weights_difference": max(abs(one - other) for one, other in zip(by_hand, half, strict=True)),
        "order": " ".join("ABCD"[source] for source in mixture.schedule(_SHOWN_STEPS)),
        "furthest_from_share_windows": _furthest(mixture),
    }


def _name(size: float) -> str:
    return f"{'ABCD'[_SIZES.index(size)]} {size / 1e6:g} MB"


def _furthest(mixture: Mixture) -> float:
    """The most by which a source has been served more or less than its share, at any of many steps."""
    total, served, furthest = sum(mixture.weights), [0] * len(mixture.weights), 0
    for step, source in enumerate(mixture.schedule(_STEPS), start=1):
        served[source] += 1
        off = (abs(count * total - step * weight) for count, weight in zip(served, mixture.weights, strict=True))
        furthest = max(furthest, *off)
    return furthest / total


def _llama_1(words: Words) -> dict[str, Value]:
    """The fixed table of Llama 1, and the weights that exponents would give its sources."""
    tokens = [_LLAMA_1_TOKENS * percent / 100 / times for percent, times in _LLAMA_1.values()]
    by_exponent = [[100 * weight for weight in exponent_weights(tokens, a)] for a in (1.0, 0.5)]
    rows = zip(_LLAMA_1.values(), tokens, *by_exponent, strict=True)
    return {
        "table": Grid(
            rows=list(_LLAMA_1),
            columns=[words.numbers[each] for each in _COLUMNS],
            values=[(count / 1e9, percent, times, *powers) for (percent, times), count, *powers in rows],
        )
    }


def _weights_by_hand(sizes: Sequence[float], exponent: float) -> list[float]:
    powers = [size**exponent for size in sizes]
    return [power / sum(powers) for power in powers]


def _chart(words: Words) -> LineChart:
    evenness = [step / 20 for step in range(21)]  # 1 - a: the curves then end apart, where their names stand
    times = [epochs(exponent_weights(_SIZES, 1 - each), _SIZES, _SERVED) for each in evenness]
    lines = {_name(size): [each[index] for each in times] for index, size in enumerate(_SIZES)}
    x, y = Axis(label=words.numbers["evenness"]), Axis(label=words.numbers["repeats"], is_log=True)
    return curves(x, y, evenness, lines)


TOPIC = Topic(
    name="mixture",
    formula=("w_i = f_i^a / sum over j of f_j^a", "e_i = T w_i / f_i", "|n_i - t w_i| < 1 at every step t"),
    symbols={"f_i": "bytes", "a": "0 ... 1", "w_i": "0 ... 1", "T": "bytes", "e_i": "epochs", "n_i": "windows"},
    show=_show,
    code=("puna/text/mixture.py", "exponent_weights"),
    test=("tests/text/test_mixture.py", "test_exponents_give_the_epochs_of_the_reference"),
)
