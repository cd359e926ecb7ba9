"""RoPE scaling against math.md 1.5 and its reference bands (section 3)."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from puna.arch.presets import find_preset
from puna.arch.rope_scaling import LinearScaling, Llama3Scaling, NoScaling
from puna.errors import UsageError


def plain(head_dim: int, base: float = 500_000.0) -> list[float]:
    return [base ** (-2 * j / head_dim) for j in range(head_dim // 2)]


def test_no_scaling_and_linear_scaling_are_what_they_say() -> None:
    assert NoScaling().rescale(plain(64)) == plain(64)
    assert LinearScaling(factor=4.0).rescale(plain(64)) == [theta / 4 for theta in plain(64)]


@pytest.mark.parametrize(
    ("preset", "bands"), [("llama-3.1-8b", (29, 6, 29)), ("llama-3.2-1b", (15, 3, 14)), ("llama-3.2-3b", (29, 6, 29))]
)
def test_llama3_scaling_keeps_blends_and_divides_the_published_numbers_of_pairs(
    preset: str, bands: tuple[int, int, int]
) -> None:
    config = find_preset(preset).config
    old = plain(config.head_dim)
    factor = config.rope_scaling.factor
    divisors = [before / after for before, after in zip(old, config.rope_scaling.rescale(old), strict=True)]
    kept = sum(divisor == 1 for divisor in divisors)
    divided = sum(math.isclose(divisor, factor) for divisor in divisors)
    assert (kept, len(divisors) - kept - divided, divided) == bands
    assert divisors == sorted(divisors)


def test_the_blend_of_llama_31_8b_has_the_published_divisors() -> None:
    config = find_preset("llama-3.1-8b").config
    old = plain(128)
    new = config.rope_scaling.rescale(old)
    assert old[29] / new[29] == pytest.approx(1.207, abs=5e-4)
    assert old[34] / new[34] == pytest.approx(5.257, abs=5e-4)


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (LinearScaling, {"factor": 0.5}),
        (LinearScaling, {"factor": math.nan}),
        (Llama3Scaling, {"factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}),
        (Llama3Scaling, {"factor": 8.0, "low_freq_factor": 0.0}),
    ],
)
def test_impossible_scaling_is_refused(build: Callable[..., object], settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="rope_scaling"):
        build(**settings)
