"""Paired differences against hand computation and simulation; logits of two models side by side."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from puna.arch.config import ModelConfig
from puna.errors import BadData, NonFiniteLoss, UsageError
from puna.evaluation import agreement
from puna.evaluation.agreement import added_nats, compare_logits
from puna.evaluation.perplexity import Likelihood
from puna.model.init import initialise
from puna.model.llama import Llama

CONFIG = ModelConfig(vocab_size=67, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_seq_len=64)
IDS = torch.randint(67, (3, 20), generator=torch.Generator().manual_seed(1))


def likelihood(nats: list[float], tokens: list[int]) -> Likelihood:
    return Likelihood(window_nats=tuple(nats), window_tokens=tuple(tokens), bytes=None, characters=None, seconds=1.0)


def test_equal_windows_are_the_paired_t_test() -> None:
    """Gains 1, 2, 3 and 6 nats on windows of 10: mean 0.3, se = sd(0.1, 0.2, 0.3, 0.6) / 2, t(3) = 3.1824."""
    change = added_nats(likelihood([50, 20, 30, 40], [10] * 4), likelihood([51, 22, 33, 46], [10] * 4))
    assert change.mean == pytest.approx(0.3)
    assert change.standard_error == pytest.approx(np.std([0.1, 0.2, 0.3, 0.6], ddof=1) / 2)
    assert change.high - change.mean == pytest.approx(3.1824 * change.standard_error, rel=5e-3)
    assert change.mean - change.low == pytest.approx(change.high - change.mean)


def test_windows_count_by_their_tokens() -> None:
    change = added_nats(likelihood([0, 0, 0], [10, 10, 2]), likelihood([1, 3, 1], [10, 10, 2]))
    residuals = [1 - 10 * 5 / 22, 3 - 10 * 5 / 22, 1 - 2 * 5 / 22]
    assert change.mean == pytest.approx(5 / 22)
    assert change.standard_error == pytest.approx(math.sqrt(1.5 * sum(r * r for r in residuals)) / 22)


def test_what_both_models_find_hard_does_not_widen_the_interval() -> None:
    hard = [100.0, 900.0, 50.0, 700.0]
    change = added_nats(likelihood(hard, [10] * 4), likelihood([nats + 2 for nats in hard], [10] * 4))
    assert change.mean == pytest.approx(0.2)
    assert change.standard_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("windows", [4, 40])
def test_the_interval_covers_the_truth_as_often_as_it_says(windows: int) -> None:
    rng = np.random.default_rng(windows)
    tokens = [100] * (windows - 1) + [37]
    covered, trials = 0, 2000
    for _ in range(trials):
        before = rng.normal(400, 80, windows)
        after = before + 0.05 * np.array(tokens) + rng.normal(0, 3, windows) * np.sqrt(np.array(tokens) / 100)
        change = added_nats(likelihood(before.tolist(), tokens), likelihood(after.tolist(), tokens))
        covered += change.low <= 0.05 <= change.high
    assert 0.93 < covered / trials < 0.97


@pytest.mark.parametrize(("freedom", "exact"), [(2, 4.302653), (4, 2.776445), (9, 2.262157), (99, 1.984217)])
def test_students_t_against_the_table(freedom: int, exact: float) -> None:
    assert agreement.student_t(freedom) == pytest.approx(exact, rel=1e-2 if freedom < 4 else 1e-3)


def test_other_windows_are_refused() -> None:
    with pytest.raises(UsageError, match="same windows"):
        added_nats(likelihood([1, 1, 1], [10, 10, 10]), likelihood([1, 1, 1], [10, 10, 9]))


def test_two_windows_are_too_few() -> None:
    with pytest.raises(BadData, match="at least 3 windows"):
        added_nats(likelihood([1, 1], [10, 10]), likelihood([1, 1], [10, 10]))


def models() -> tuple[Llama, Llama]:
    first, second = initialise(Llama(CONFIG), seed=1), initialise(Llama(CONFIG), seed=1)
    for parameter in second.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return first, second


@torch.no_grad()
def naive(first: Llama, second: Llama) -> tuple[float, float, float, float]:
    p, q = first(IDS).double(), second(IDS).double()
    kl = (p.softmax(-1) * (p.softmax(-1) / q.softmax(-1)).log()).sum(-1).mean()
    same = (p.argmax(-1) == q.argmax(-1)).double().mean()
    return float((p - q).abs().max()), float(p.abs().max()), float(kl), float(same)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 1000])
def test_compared_logits_equal_the_naive_ones_in_any_chunks(chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_CHUNK_LOGITS", chunk_tokens * CONFIG.vocab_size)
    found, expected = compare_logits(*models(), IDS), naive(*models())
    ours = (found.max_logit_difference, found.largest_logit, found.kl_nats, found.top1_agreement)
    assert ours == pytest.approx(expected, rel=1e-4)
    assert 0 < found.top1_agreement < 1
    assert found.kl_nats > 1e-4


def test_a_model_agrees_with_itself() -> None:
    first, _ = models()
    found = compare_logits(first, first, IDS)
    assert (found.max_logit_difference, found.kl_nats, found.top1_agreement) == (0, 0, 1)


def test_logits_that_are_no_numbers_never_agree() -> None:
    first, second = models()
    second.norm.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteLoss):
        compare_logits(first, second, IDS)


def test_kl_is_of_the_first_model() -> None:
    first, second = models()
    assert compare_logits(first, second, IDS).kl_nats != compare_logits(second, first, IDS).kl_nats


def test_a_likelihood_can_be_changed_only_by_making_another() -> None:
    first = likelihood([1.0], [2])
    assert replace(first, seconds=2.0).tokens_per_second == 1
