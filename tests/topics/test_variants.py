"""Topics on models with exchanged parts: what looks inside still agrees with the engine, and nothing fails."""

from collections.abc import Callable
from typing import Any

import pytest

from puna.arch.attention_pattern import SlidingWindow
from puna.model.llama import Llama
from puna.topics.explain import find_topic
from puna.topics.subject import Subject, small_tokenizer
from puna.topics.topic import Grid
from puna.topics.words import topic_words

LOOKING = (
    "activations", "attention", "backprop", "block", "cache", "gqa", "head", "loss", "norms", "precision",
    "sparse-attention", "tensors",
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "window": {"pattern": SlidingWindow(window=3, learnable_sink=True), "score_scale": "1"},
    "bare": {"norm": "none", "ffn": "relu", "position": "none"},
    "2017": {"norm": "layer", "norm_placement": "post", "position": "sinusoidal", "ffn": "relu", "mlp_bias": True},
    "batch": {"norm": "batch", "ffn": "glu", "attention_bias": True, "head_bias": True, "score_scale": "1/d"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("topic", LOOKING)
def test_a_variant_is_shown_as_it_is(build_llama: Callable[..., Llama], topic: str, variant: str) -> None:
    llama, tokenizer = build_llama(**VARIANTS[variant]), small_tokenizer()
    ids = tokenizer.encode("The cat sleeps", bos=True)
    subject = Subject(
        name=variant, config=llama.config, llama=llama, tokenizer=tokenizer, text="", ids=ids, rank=None, notices=()
    )
    shown = find_topic(topic).show(subject, topic_words(topic, "en"))
    for part in shown.parts:
        for name, value in part.numbers.items():
            if name.endswith("_difference"):
                assert not isinstance(value, Grid)
                assert abs(float(str(value))) <= 2e-6, name  # these weights are as large as trained ones
