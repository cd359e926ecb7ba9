"""The sampler against hand computation and against Hugging Face's warpers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from puna.errors import NonFiniteLoss, UsageError
from puna.generation.sampling import Sampler, SamplingSettings

HAND_V = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


def probabilities(logits_V: torch.Tensor = HAND_V, **settings: object) -> list[float]:
    return Sampler(SamplingSettings(**settings)).probabilities(logits_V).tolist()


def test_default_is_the_models_own_distribution() -> None:
    assert probabilities() == pytest.approx([0.5, 0.25, 0.15, 0.1])


def test_temperature_divides_the_logits() -> None:
    squared = [0.25, 0.0625, 0.0225, 0.01]
    assert probabilities(temperature=0.5) == pytest.approx([p / sum(squared) for p in squared])


def test_temperature_zero_is_greedy() -> None:
    assert probabilities(temperature=0) == [1, 0, 0, 0]
    assert probabilities(temperature=1e-320) == [1, 0, 0, 0]


def test_top_k_keeps_k_and_renormalises() -> None:
    assert probabilities(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(top_k=9) == probabilities()


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.95, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: int) -> None:
    mass = sum([0.5, 0.25, 0.15, 0.1][:kept])
    expected = [p / mass if i < kept else 0 for i, p in enumerate([0.5, 0.25, 0.15, 0.1])]
    assert probabilities(top_p=top_p) == pytest.approx(expected)


@pytest.mark.parametrize(("min_p", "kept"), [(0.19, 4), (0.21, 3), (0.31, 2), (0.49, 2), (0.51, 1), (1.0, 1)])
def test_min_p_keeps_a_share_of_the_likeliest(min_p: float, kept: int) -> None:
    assert sum(p > 0 for p in probabilities(min_p=min_p)) == kept


@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.9])
def test_top_p_of_a_flat_distribution_keeps_its_share(top_p: float) -> None:
    """2,048 equal tokens: more than the few that are looked at first."""
    assert sum(p > 0 for p in probabilities(torch.zeros(2048), top_p=top_p)) == math.ceil(top_p * 2048)


def test_filters_work_on_what_the_ones_before_left() -> None:
    """Of the two that top-k leaves, 2/3 and 1/3, top-p 0.6 needs one only; of all four it needs two."""
    assert probabilities(top_k=2, top_p=0.6) == pytest.approx([1, 0, 0, 0])
    assert probabilities(top_p=0.6) == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_temperature_comes_before_the_filters() -> None:
    assert sum(p > 0 for p in probabilities(top_p=0.7)) == 2
    assert sum(p > 0 for p in probabilities(top_p=0.7, temperature=0.5)) == 1


@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.sampled_from([50, 1500]),
    temperature=st.floats(0.1, 2),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.floats(0.05, 1),
    min_p=st.just(0.0) | st.floats(0.001, 0.9),
)
def test_equals_hugging_face(
    seed: int, vocabulary: int, temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    logits_V = 4 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed))
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [] if top_k is None else [TopKLogitsWarper(top_k)]
    warpers += [] if top_p == 1 else [TopPLogitsWarper(top_p)]
    warpers += [] if min_p == 0 else [MinPLogitsWarper(min_p)]
    scores = logits_V[None]
    for warper in warpers:
        scores = warper(torch.zeros(1, 1), scores)
    ours = probabilities(logits_V, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert ours == pytest.approx(scores.softmax(-1)[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("given_settings", [{}, {"top_p": 0.8}, {"top_k": 3, "temperature": 1.7}, {"min_p": 0.4}])
def test_ids_are_drawn_from_the_probabilities(given_settings: dict[str, float]) -> None:
    sampler = Sampler(SamplingSettings(**given_settings, seed=7))
    draws = 5_000
    counts = torch.bincount(torch.tensor([sampler(HAND_V) for _ in range(draws)]), minlength=4)
    expected = sampler.probabilities(HAND_V) * draws
    assert torch.all(counts[expected == 0] == 0)
    live = expected > 0
    chi_squared = ((counts - expected)[live] ** 2 / expected[live]).sum()
    assert chi_squared < 16.3  # 0.1 % point with 3 degrees of freedom


def test_same_seed_same_ids_whatever_else_draws() -> None:
    def ids(seed: int, *, disturb: bool) -> list[int]:
        sampler = Sampler(SamplingSettings(seed=seed))
        drawn = []
        for _ in range(50):
            if disturb:
                torch.rand(3)
            drawn.append(sampler(HAND_V))
        return drawn

    assert ids(5, disturb=False) == ids(5, disturb=True)
    assert ids(5, disturb=False) != ids(6, disturb=False)


@given(seed=st.integers(0, 1000))
def test_top_k_one_is_greedy_even_between_equals(seed: int) -> None:
    logits_V = torch.randint(3, (20,), generator=torch.Generator().manual_seed(seed)).float()
    greedy = Sampler(SamplingSettings(temperature=0))(logits_V)
    assert Sampler(SamplingSettings(top_k=1, seed=seed))(logits_V) == greedy == int(logits_V.argmax())


def test_a_token_of_minus_infinity_never_comes() -> None:
    logits_V = torch.tensor([-math.inf, 0.0, -math.inf])
    sampler = Sampler(SamplingSettings(temperature=2.0, top_p=0.99))
    assert {sampler(logits_V) for _ in range(50)} == {1}


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_the_smallest_and_the_largest_draw_take_a_possible_token(draw: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(draw, dtype=torch.float64))
    logits_V = torch.tensor([-math.inf, 0.3, 0.1, 0.2, -math.inf])
    assert Sampler(SamplingSettings())(logits_V) == (1 if draw == 0 else 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_that_are_no_numbers_are_refused(temperature: float, bad: list[float]) -> None:
    with pytest.raises(NonFiniteLoss, match="logits"):
        Sampler(SamplingSettings(temperature=temperature))(torch.tensor(bad))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_k", 0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("seed", 2**63),
    ],
)
def test_a_setting_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"^{field}: expected") as caught:
        SamplingSettings(**{field: value})
    assert caught.value.hint
