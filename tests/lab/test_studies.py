"""The studies: arms that differ in one thing, matched in what is not the question."""

from dataclasses import replace

import pytest
import torch

from puna.errors import UsageError
from puna.lab.recipe import LabRecipe, base_model
from puna.lab.studies import STUDIES, find_study
from puna.lab.study import Arm, build_arm, with_parameters
from puna.model.batch import Batch
from puna.planning.compute import forward_flops
from puna.planning.counting import kv_cache_bytes_per_token, linear_parameters, parameter_count
from puna.report.labels import phrase

NAMES = ("transformer-2017", "+ pre-norm", "pre-norm", "post-norm", "float32")
BASE = base_model(LabRecipe(study="norms"), 2048)


@pytest.mark.parametrize("name", [name for name in STUDIES if name not in ("size", "lora")])
def test_every_arm_holds_as_many_parameters_as_the_one_it_is_compared_with(name: str) -> None:
    study = STUDIES[name](BASE)
    for arm in study.arms:
        if arm.against is not None:
            mine, other = (trained_parameters(each) for each in (arm, study.arm(arm.against)))
            assert mine == pytest.approx(other, rel=0.003) or arm.name == "dense, as many numbers", arm.name


def trained_parameters(arm: Arm) -> int:
    """Without rows of a table of positions that no token of training reads."""
    config = arm.model
    unread = (config.max_seq_len - config.max_seq_len // 4) * config.dim if config.position == "learned" else 0
    return arm.parameters - unread


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_differs_from_the_one_it_is_compared_with(name: str) -> None:
    study = STUDIES[name](BASE)
    for arm in study.arms:
        if arm.against is not None:
            other = study.arm(arm.against)
            assert replace(arm, name="", against=None) != replace(other, name="", against=None), arm.name


def test_the_base_has_about_three_million_parameters() -> None:
    assert 2.5e6 < parameter_count(BASE) < 3.5e6


def test_the_ladder_begins_in_2017_and_ends_at_a_llama() -> None:
    arms = STUDIES["ladder"](BASE).arms
    assert (arms[0].model.norm_placement, arms[0].model.norm, arms[0].model.position) == ("post", "layer", "sinusoidal")
    assert not arms[-1].model.exchanged
    assert arms[-1].model.n_kv_heads == BASE.n_kv_heads
    assert [arm.against for arm in arms] == [None, *(arm.name for arm in arms[:-1])]


def test_sizes_are_trained_with_equal_flops_and_one_at_equal_inference_twice_as_long() -> None:
    *arms, longer = STUDIES["size"](BASE).arms
    assert longer.model == arms[0].model
    assert longer.share == 2 * arms[0].share
    assert longer.against == arms[0].name
    for arm in arms:
        spent = arm.share * forward_flops(arm.model, 256).total
        assert spent == pytest.approx(forward_flops(BASE, 256).total, rel=1e-6)


@pytest.mark.parametrize("dim", [64, 128, 192, 256, 384, 512, 768])
def test_every_study_can_be_made_at_widths_that_are_taken(dim: int) -> None:
    for maker in STUDIES.values():
        assert maker(base_model(LabRecipe(study="norms", dim=dim), 2048)).arms


def test_factors_compute_less_than_the_dense_model_that_they_cut() -> None:
    arms = {arm.name: arm for arm in STUDIES["low-rank"](BASE).arms}
    assert arms["low rank, half kept"].saved_numbers == pytest.approx(0.5 * linear_parameters(BASE), rel=0.03)
    assert arms["dense"].saved_numbers == 0


def test_fewer_heads_cache_less_and_hold_as_much() -> None:
    arms = STUDIES["heads"](BASE).arms
    assert [arm.model.n_kv_heads for arm in arms] == [6, 3, 2, 1]
    assert kv_cache_bytes_per_token(arms[0].model) == 6 * kv_cache_bytes_per_token(arms[-1].model)


def test_the_width_is_chosen_for_the_parameters() -> None:
    assert with_parameters(BASE, parameter_count(BASE)) == BASE


def test_an_unknown_study_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown study 'norm'") as caught:
        find_study("norm")
    assert "norms" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seconds": 0.0}, "seconds: expected more than 0"),
        ({"seeds": 0}, "seeds: expected at least 1"),
        ({"learning_rates": (0.0,)}, "learning_rates: expected rates above 0"),
        ({"dim": 100}, "dim: expected 64, 128, 192"),
        ({"dim": 320}, "dim: expected 64, 128, 192"),
        ({"seq": 62}, "seq: expected a multiple of 4 from 64 on"),
        ({"vocab_size": 200}, "vocab_size: expected at least 300"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        LabRecipe(**{"study": "norms", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_can_be_built_and_probed(name: str) -> None:
    small = base_model(LabRecipe(study=name, dim=64, n_layers=2, seq=64), 300)
    study = STUDIES[name](small)
    ids = torch.randint(0, 300, (2, 257), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:])
    for arm in study.arms:
        model = build_arm(arm, 0, torch.device("cpu"))
        assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == arm.parameters
        for probe in study.probes[:3]:
            assert probe(model, [batch]), arm.name


@pytest.mark.parametrize("name", STUDIES)
def test_what_arms_are_called_is_said_in_chinese_but_for_names(name: str) -> None:
    for arm in STUDIES[name](BASE).arms:
        assert phrase("en", "lab.arm", arm.name) == arm.name
        for part in arm.name.split(", "):
            is_name = part.removeprefix("+ ")[0].isupper() or part in NAMES or part.startswith(("alpha = ", "q k"))
            assert is_name or phrase("zh", "lab.arm", part) != part
