"""The loss: how little probability the model gave to what really came next, in nats, as a mean over all targets of a step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from puna.evaluation.perplexity import Likelihood
from puna.model.linears.kind import dense_linear
from puna.model.llama import Llama
from puna.model.loss import chunked_nats, token_nats
from puna.report.axes import Axis, Reference
from puna.report.bars import BarChart, Bars
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value
from puna.topics.words import Words

__all__ = ["TOPIC"]

_VOCABULARIES = (32_000, 128_256)  # of Llama 1 and 2, and of Llama 3
_SMALL = 4


def _show(subject: Subject, words: Words) -> Shown:
    vocabularies = dict.fromkeys((subject.config.vocab_size, *_VOCABULARIES))
    equal = _of_equal_logits(list(vocabularies), words)
    llama, tokenizer, ids = subject.llama, subject.tokenizer, subject.ids
    if llama is None or tokenizer is None or len(ids) < 3:  # two targets at least: a step is split
        return Shown.of(equal=equal)
    rows, numbers = _of_a_text(llama, subject.ids_BT, len(tokenizer.decode_bytes(ids[1:])))
    names = [f"{before} → {target}" for before, target in zip(subject.pieces, subject.pieces[1:], strict=False)]
    numbers["by_token"] = Grid(rows=names, columns=words.of("nats", "probability"), values=rows)
    chart = BarChart(
        axis=Axis(label=words.numbers["nats"]), categories=names, series=(Bars(name="", values=[nats for nats, _ in rows]),),
        references=(Reference(label="ln V", value=math.log(subject.config.vocab_size)),),
    )  # fmt: skip
    return Shown.of(model=numbers, equal=equal, pictures={"loss": chart})


@torch.no_grad()
def _of_a_text(llama: Llama, ids_BT: Tensor, text_bytes: int) -> tuple[list[tuple[float, float]], dict[str, Value]]:
    """Each target's nats and probability; their sums and means, in one batch and split into two unequal ones."""
    hidden_BTD, targets_BT = llama.hidden(ids_BT[:, :-1]), ids_BT[:, 1:]
    nats_T = token_nats(llama.lm_head, hidden_BTD, targets_BT)[0]
    whole = chunked_nats(llama.lm_head, hidden_BTD, targets_BT)
    size = max(1, whole.count // 4)
    first, rest = (
        chunked_nats(llama.lm_head, hidden_BTD[:, part], targets_BT[:, part])
        for part in (slice(size), slice(size, None))
    )
    likelihood = Likelihood(
        window_nats=(float(whole.sum),), window_tokens=(whole.count,), bytes=text_bytes, characters=None, seconds=0.0
    )
    probability_T = _probability_by_hand(llama.lm_head(hidden_BTD)[0], targets_BT[0])
    numbers: dict[str, Value] = {
        "targets_tokens": whole.count,
        "sum_nats": float(whole.sum),
        "mean_nats": whole.mean,
        "ln_v_nats": math.log(llama.config.vocab_size),
        "perplexity": likelihood.perplexity,
        "bits_per_byte": likelihood.bits_per_byte,
        "nats_difference": float((probability_T.log() + nats_T).abs().max() / nats_T.max()),
        "split_tokens": [first.count, rest.count],
        "mean_of_means_nats": (first.mean + rest.mean) / 2,
        "split_difference": abs((first + rest).mean - whole.mean) / whole.mean,
    }
    return list(zip(nats_T.tolist(), probability_T.tolist(), strict=True)), numbers


def _probability_by_hand(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    return logits_TV.double().softmax(-1).gather(-1, targets_T[:, None])[:, 0]


def _of_equal_logits(vocabularies: Sequence[int], words: Words) -> dict[str, Value]:
    """What a model without any knowledge loses, and how its logits are told to move."""
    nats = [_equal_nats(vocab_size) for vocab_size in vocabularies]
    logits_TV = torch.zeros(2, _SMALL, requires_grad=True)
    loss = chunked_nats(dense_linear(torch.eye(_SMALL)), logits_TV, torch.tensor([0, 2]))  # a head that passes them on
    (gradient_TV,) = torch.autograd.grad(loss.sum / loss.count, logits_TV)
    return {
        "equal_logits_difference": max(abs(a - math.log(V)) for a, V in zip(nats, vocabularies, strict=True)),
        "row_sum_difference": float(gradient_TV.sum(-1).abs().max()),
        "equal_logits": Grid(
            rows=[f"V = {each:,}" for each in vocabularies],
            columns=[words.numbers["measured"], "ln V"],
            values=[[a, math.log(V)] for a, V in zip(nats, vocabularies, strict=True)],
        ),
        "gradient": Grid(
            rows=["x_t = 0", "x_t = 2"], columns=[f"z_{index}" for index in range(_SMALL)], values=gradient_TV.tolist()
        ),
    }


def _equal_nats(vocab_size: int) -> float:
    head = dense_linear(torch.zeros(vocab_size, 1, dtype=torch.float64)).requires_grad_(requires_grad=False)
    return chunked_nats(head, torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])).mean


TOPIC = Topic(
    name="loss",
    formula=("L = -(1/N) sum over the kept targets of ln P(x_t | x_1 ... x_(t-1))", "dL/dz = (P - onehot(x_t)) / N"),
    symbols={"x_t": "n", "P": "n V", "N": "tokens", "L": "nats", "z": "n V"},
    show=_show,
    code=("puna/model/loss.py", "chunked_nats"),
    test=("tests/model/test_loss.py", "test_equal_logits_cost_ln_v"),
)
