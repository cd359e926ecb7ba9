"""What a unit of a matrix's own loss costs the model: predicted and measured agree at the reference rank."""

import copy

import pytest
import torch
from torch import Tensor

from puna.compression.groups import group_members
from puna.compression.low_rank import compress_low_rank, decompose_groups, decompose_linears
from puna.compression.reference_costs import reference_costs
from puna.compression.statistics import collect_two_sided_statistics
from puna.errors import BadData
from puna.model.llama import Llama
from puna.model.surgery import get_linear, named_linears

DOWN, O_PROJ = "layers.1.mlp.down_proj", "layers.0.self_attn.o_proj"
QKV = "layers.1.self_attn.q_proj+k_proj+v_proj"


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(2))


def mean_kl(first: Llama, second: Llama, ids: Tensor) -> float:
    p, q = (model(ids).double().log_softmax(-1) for model in (first, second))
    return float((p.exp() * (p - q)).sum(-1).mean())


@torch.no_grad()
def test_the_cost_of_a_matrix_times_its_loss_is_the_divergence_that_was_measured(tiny: Llama, ids: Tensor) -> None:
    found = collect_two_sided_statistics(tiny, [ids])
    spectra = dict(decompose_linears(tiny, found.grams, found.gradients))
    ranks = {DOWN: 20, O_PROJ: 9}
    costs = reference_costs(tiny, spectra, ids.split(1), ranks)
    assert set(costs) == set(ranks)
    for path, rank in ranks.items():
        smaller = copy.deepcopy(tiny)
        compress_low_rank(smaller, spectra.items(), {path: rank})
        assert costs[path] * spectra[path].loss(rank) == pytest.approx(mean_kl(tiny, smaller, ids), rel=1e-3)


@torch.no_grad()
def test_a_groups_members_are_cut_together(tiny: Llama, ids: Tensor) -> None:
    found = collect_two_sided_statistics(tiny, [ids])
    spectra = dict(decompose_groups(tiny, found.grams, found.gradients))
    cost = reference_costs(tiny, spectra, [ids], {QKV: 12})[QKV]
    smaller = copy.deepcopy(tiny)
    Us, V = spectra[QKV].member_factors(12)
    for path, U in zip(group_members(QKV), Us, strict=True):
        get_linear(smaller, path).weight.copy_(U @ V)
    assert cost * spectra[QKV].loss(12) == pytest.approx(mean_kl(tiny, smaller, ids), rel=1e-3)


def test_the_model_is_left_as_it_was_and_a_matrix_that_loses_nothing_costs_nothing(tiny: Llama, ids: Tensor) -> None:
    before = [id(linear) for _, linear in named_linears(tiny)]
    with torch.no_grad():
        get_linear(tiny, DOWN).weight.zero_()
    spectra = dict(decompose_linears(tiny))
    assert reference_costs(tiny, spectra, [ids], {DOWN: 4}) == {DOWN: 0.0}
    assert [id(linear) for _, linear in named_linears(tiny)] == before
    with pytest.raises(BadData, match="at least one window"):
        reference_costs(tiny, spectra, [], {DOWN: 4})
