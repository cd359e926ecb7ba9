"""The likelihood of a text, in the units that people compare."""

import math
from pathlib import Path

import pytest
import torch

from puna.errors import BadData, UsageError
from puna.jobs.evaluate import evaluate
from puna.jobs.load import load


def test_the_units_agree_with_each_other_and_with_the_logits(world) -> None:
    result = evaluate(world.run, world.judge, window=50)
    text, loaded = world.judge.read_text(), load(world.run)
    ids = loaded.tokenizer.encode(text)
    assert result.tokens == len(ids)
    assert result.perplexity == pytest.approx(math.exp(result.nats_per_token))
    bits = result.nats_per_token * result.tokens / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits / len(text.encode()))
    assert result.bits_per_character == pytest.approx(bits / len(text))
    nats = 0.0
    for start in range(0, len(ids), 50):
        part = torch.tensor([loaded.tokenizer.bos_id, *ids[start : start + 50]])
        with torch.no_grad():
            chances = loaded(part[None, :-1])[0].double().log_softmax(-1)
        nats -= float(chances.gather(1, part[1:, None]).sum())
    assert result.nats_per_token == pytest.approx(nats / len(ids), rel=1e-6)


def test_overlap_gives_more_context_and_counts_every_id_once(world) -> None:
    apart, overlapping = (
        evaluate(world.run, world.judge, window=20),
        evaluate(world.run, world.judge, window=20, stride=5),
    )
    assert apart.tokens == overlapping.tokens


def test_what_cannot_be_evaluated_is_refused(world, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="got nothing"):
        evaluate(world.run, tmp_path / "none")
    with pytest.raises(UsageError, match="preset"):
        evaluate("tiny", world.judge)
    with pytest.raises(UsageError, match="window: expected 1 to the context of 256, got 257"):
        evaluate(world.run, world.judge, window=257)
