"""The pace is that of the last steps, and its ceiling what products alone would allow."""

import pytest
import torch

from puna.arch.presets import find_preset
from puna.jobs import pace as job
from puna.jobs.pace import Pace, token_ceiling
from puna.planning.counting import linear_parameters
from puna.training.events import StepEvent


def step(tokens: int, seconds: float) -> StepEvent:
    return StepEvent(
        step=1, tokens=tokens, nats=1.0, learning_rate=0.1, gradient_norm=1.0, seconds=seconds, progress=0.5
    )


def test_the_pace_forgets_what_is_long_ago() -> None:
    pace = Pace(steps=2)
    assert pace(step(100, 10.0)) == 10
    assert pace(step(200, 11.0)) == 100
    assert pace(step(300, 12.0)) == 100
    assert pace(step(600, 13.0)) == 200
    assert pace(step(50, 1.0)) == 50  # another run


def test_the_ceiling_is_six_operations_for_each_parameter_that_stands_in_a_product(monkeypatch) -> None:
    monkeypatch.setattr(job, "product_flops", lambda precision, device: {"float32": 1e12, "bfloat16": 3e12}[precision])
    config, device = find_preset("small").config, torch.device("cpu")
    counted = linear_parameters(config) + config.vocab_size * config.dim
    assert token_ceiling(config, "float32", device) == pytest.approx(1e12 / (6 * counted))
    assert token_ceiling(config, "bfloat16", device) == pytest.approx(3e12 / (6 * counted))
