"""ModelConfig refuses what no Llama can be, and says what to do."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from puna.arch.config import ModelConfig
from puna.arch.rope_scaling import LinearScaling
from puna.errors import UsageError


def test_the_worked_example_of_source_002_has_its_shapes() -> None:
    config = ModelConfig(
        vocab_size=100,
        dim=512,
        n_layers=1,
        n_heads=8,
        n_kv_heads=2,
        head_dim=64,
        ffn_dim=1408,
        max_seq_len=100,
    )
    assert (config.q_dim, config.kv_dim, config.heads_per_group) == (512, 128, 4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dim": 0}, "model.dim"),
        ({"norm": "group"}, "model.norm"),
        ({"score_scale": "1/4"}, "model.score_scale"),
        ({"position": "learned", "rope_scaling": LinearScaling(factor=2.0)}, "model.rope_scaling"),
        ({"n_layers": -1}, "model.n_layers"),
        ({"max_seq_len": 0}, "model.max_seq_len"),
        ({"n_kv_heads": 3}, "model.n_kv_heads"),
        ({"head_dim": 15}, "model.head_dim"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"rope_theta": 1.0}, "rope_theta"),
    ],
)
def test_an_impossible_model_is_refused_by_the_name_of_its_field(
    tiny_config: ModelConfig, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        replace(tiny_config, **changes)
    assert caught.value.hint


def test_a_config_cannot_change_after_it_was_checked(tiny_config: ModelConfig) -> None:
    with pytest.raises(FrozenInstanceError):
        tiny_config.dim = 0  # type: ignore[misc]
