"""The head: the last vector times a matrix gives a logit for each token of the vocabulary, a softmax makes them probabilities."""

from dataclasses import replace

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.arch.modules import HEAD
from puna.generation.sampling import Sampler, SamplingSettings
from puna.planning.counting import head_parameters, target_shapes
from puna.report.axes import Axis
from puna.report.bars import BarChart, Bars
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value
from puna.topics.words import Words

__all__ = ["TOPIC"]

_LIKELIEST = 10
_SHIFT = 100.0  # of every logit


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    numbers = _counts(subject.config)
    if subject.llama is None:
        return Shown.of(model=numbers)
    logits_V = subject.llama(subject.ids_BT)[0, -1].float()
    probability_V, shifted_V = (
        Sampler(SamplingSettings()).probabilities(logits_V.double() + shift) for shift in (0, _SHIFT)
    )
    likeliest = probability_V.topk(_LIKELIEST)
    names, probabilities = _names(subject, likeliest.indices.tolist()), likeliest.values.tolist()
    numbers |= {
        "probability_sum": float(probability_V.double().sum()),
        "likeliest_probability": sum(probabilities),
        "softmax_difference": float((_softmax_by_hand(logits_V.double()) - probability_V).abs().max()),
        "shift_difference": float((shifted_V - probability_V).abs().max()),
        "likeliest": Grid(
            rows=names,
            columns=words.of("logit", "probability"),
            values=list(zip(logits_V[likeliest.indices].tolist(), probabilities, strict=True)),
        ),
    }
    chart = BarChart(
        axis=Axis(label=words.numbers["probability"], form="percent"),
        categories=names,
        series=(Bars(name="", values=probabilities),),
    )
    return Shown.of(model=numbers, pictures={"head": chart})


def _counts(config: ModelConfig) -> dict[str, Value]:
    rows, width = target_shapes(config)[HEAD]
    bare, biased = (head_parameters(replace(config, head_bias=has)) for has in (False, True))
    return {
        "weight_parameters": rows * width,
        "own_parameters": head_parameters(config),
        "bias_parameters": head_parameters(config) - bare,
        "bias_would_be_parameters": biased - bare,
    }


def _names(subject: Subject, ids: list[int]) -> list[str]:
    """Each token's text, in quotes if it cannot be seen; its number where the tokenizer is smaller than the vocabulary."""
    known = 0 if subject.tokenizer is None else subject.tokenizer.vocab_size
    names = [replace(subject, ids=[each]).pieces[0] if each < known else f"#{each}" for each in ids]
    return [name if name.isprintable() and name.strip() else ascii(name) for name in names]


def _softmax_by_hand(logits_V: Tensor) -> Tensor:
    raised_V = (logits_V - logits_V.max()).exp()
    return raised_V / raised_V.sum()


TOPIC = Topic(
    name="head",
    formula=("z = W_out h", "P_i = e^(z_i) / sum over j of e^(z_j)"),
    symbols={"h": "d", "W_out": "V d", "z": "V", "P": "V"},
    show=_show,
    code=("puna/model/llama.py", "Llama"),
    test=("tests/model/test_loss.py", "test_the_same_shift_of_every_logit_changes_nothing"),
)
