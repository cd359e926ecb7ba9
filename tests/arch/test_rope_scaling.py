"""RoPE scaling against math.md 1.5 and its reference bands (section 3)."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from puna.arch.presets import find_preset
from puna.arch.rope_scaling import LinearScaling, Llama3Scaling, NoScaling, YarnScaling
from puna.errors import UsageError


def plain(head_dim: int, base: float = 500_000.0) -> list[float]:
    return [base ** (-2 * j / head_dim) for j in range(head_dim // 2)]


def test_no_scaling_and_linear_scaling_are_what_they_say() -> None:
    assert NoScaling().rescale(plain(64), 5e5) == plain(64)
    assert LinearScaling(factor=4.0).rescale(plain(64), 5e5) == [theta / 4 for theta in plain(64)]


@pytest.mark.parametrize(
    ("preset", "bands"), [("llama-3.1-8b", (29, 6, 29)), ("llama-3.2-1b", (15, 3, 14)), ("llama-3.2-3b", (29, 6, 29))]
)
def test_llama3_scaling_keeps_blends_and_divides_the_published_numbers_of_pairs(
    preset: str, bands: tuple[int, int, int]
) -> None:
    config = find_preset(preset).config
    old = plain(config.head_dim)
    factor = config.rope_scaling.factor
    divisors = [
        before / after for before, after in zip(old, config.rope_scaling.rescale(old, config.rope_theta), strict=True)
    ]
    kept = sum(divisor == 1 for divisor in divisors)
    divided = sum(math.isclose(divisor, factor) for divisor in divisors)
    assert (kept, len(divisors) - kept - divided, divided) == bands
    assert divisors == sorted(divisors)


def test_the_blend_of_llama_31_8b_has_the_published_divisors() -> None:
    config = find_preset("llama-3.1-8b").config
    old = plain(128)
    new = config.rope_scaling.rescale(old, config.rope_theta)
    assert old[29] / new[29] == pytest.approx(1.207, abs=5e-4)
    assert old[34] / new[34] == pytest.approx(5.257, abs=5e-4)


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (LinearScaling, {"factor": 0.5}),
        (LinearScaling, {"factor": math.nan}),
        (Llama3Scaling, {"factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}),
        (Llama3Scaling, {"factor": 8.0, "low_freq_factor": 0.0}),
        (YarnScaling, {"factor": 0.5, "original_max_seq_len": 4096}),
        (YarnScaling, {"factor": 4.0, "original_max_seq_len": 4096, "beta_fast": 1.0}),
        (YarnScaling, {"factor": 4.0, "original_max_seq_len": 0}),
        (YarnScaling, {"factor": 4.0, "original_max_seq_len": 4096, "attention_factor": 0.0}),
    ],
)
def test_impossible_scaling_is_refused(build: Callable[..., object], settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="rope_scaling"):
        build(**settings)


def test_yarn_ramps_over_the_index_between_the_published_pairs() -> None:
    old = plain(128, 10_000.0)
    scaling = YarnScaling(factor=16.0, original_max_seq_len=4096)
    divisors = [before / after for before, after in zip(old, scaling.rescale(old, 10_000.0), strict=True)]
    assert [index for index, divisor in enumerate(divisors) if divisor == 1][-1] == 20
    assert next(index for index, divisor in enumerate(divisors) if math.isclose(divisor, 16)) == 46
    kept = [(1 / divisor - 1 / 16) / (1 - 1 / 16) for divisor in divisors[20:47]]
    assert kept == pytest.approx([1 - step / 26 for step in range(27)])
    assert scaling.amplitude == pytest.approx(1.27726, abs=1e-5)
    assert scaling.amplitude**2 == pytest.approx(1.63139, abs=1e-5)


def test_the_papers_ramp_is_linear_in_turns() -> None:
    old = plain(64, 10_000.0)
    scaling = YarnScaling(factor=4.0, original_max_seq_len=2048, ramp="turns")
    for before, after in zip(old, scaling.rescale(old, 10_000.0), strict=True):
        turns = 2048 * before / (2 * math.pi)
        share = min(max((turns - 1) / 31, 0), 1)
        assert after == pytest.approx((1 - share) * before / 4 + share * before)


def test_an_explicit_attention_factor_is_the_amplitude() -> None:
    assert YarnScaling(factor=4.0, original_max_seq_len=64, attention_factor=1.0).amplitude == 1.0
    assert NoScaling().amplitude == LinearScaling(factor=2.0).amplitude == Llama3Scaling(factor=8.0).amplitude == 1.0
