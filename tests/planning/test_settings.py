import pytest

from puna.errors import UsageError
from puna.planning.settings import FullTraining, Inference, LoraTraining, Settings


@pytest.mark.parametrize("wrong", [{"seq": 0}, {"batch": -1}, {"base": "int9"}, {"loss": "whole"}])
def test_a_wrong_setting_is_refused_by_name(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Settings(**({"method": Inference(), "seq": 1, "batch": 1, "base": "bfloat16"} | wrong))


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_quantised_weights_are_not_trained(base):
    with pytest.raises(UsageError, match="full training") as error:
        Settings(method=FullTraining(), seq=1, batch=1, base=base)
    assert "lora" in error.value.hint


def test_a_rank_of_zero_and_an_unknown_target_are_refused():
    with pytest.raises(UsageError, match="rank"):
        LoraTraining(rank=0)
    with pytest.raises(UsageError, match="q_porj"):
        LoraTraining(targets=("q_porj",))


@pytest.mark.parametrize("wrong", [{"streamed_layers": -1}, {"streamed_layers": 3}, {"streamed_embedding": True}])
def test_only_frozen_layers_are_streamed(wrong):
    with pytest.raises(UsageError, match="streamed_layers"):
        Settings(**({"method": FullTraining(), "seq": 1, "batch": 1, "base": "float32"} | wrong))


def test_autocast_is_of_float32_weights():
    with pytest.raises(UsageError, match="autocast: expected base float32, got nf4"):
        Settings(method=LoraTraining(), seq=1, batch=1, base="nf4", autocast=True)


def test_what_is_said_of_a_smaller_base_needs_one():
    changes = {"method": LoraTraining(), "seq": 1, "batch": 1, "base": "float32"}
    with pytest.raises(UsageError, match="is_wide: expected a base of fewer bits, got float32"):
        Settings(**changes, is_wide=True)
    with pytest.raises(UsageError, match="integer_products: expected base int8, got float32"):
        Settings(**changes, integer_products=True)
