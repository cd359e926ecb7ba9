"""Fewer bits for a whole model: every block Linear and nothing else, factors as factors, close to the model it came from."""

import pytest
import torch
from torch import Tensor

from puna.arch.rounding import ROUNDINGS, Rounding
from puna.compression.rounding import check_rounding, round_linears
from puna.compression.sizes import linear_bytes
from puna.errors import UsageError
from puna.model.linears.int8 import Int8WeightLinear
from puna.model.linears.low_rank import LowRankLinear
from puna.model.linears.rounded import rounded
from puna.model.linears.rounded_low_rank import RoundedLowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, named_linears, replace_group, replace_linear


def test_every_block_linear_becomes_int8_and_embedding_and_head_stay(tiny: Llama) -> None:
    dense, config = linear_bytes(tiny), tiny.config
    round_linears(tiny, "int8")
    assert all(type(linear) is Int8WeightLinear for _, linear in named_linears(tiny))
    assert type(tiny.lm_head) is torch.nn.Linear
    assert tiny.lm_head.weight is tiny.embed_tokens.weight
    rows = sum(linear.out_features for _, linear in named_linears(tiny))
    assert linear_bytes(tiny) == dense // 4 + 4 * rows
    assert config is tiny.config


def test_the_rounded_model_stays_within_a_few_percent_of_its_logits(tiny: Llama) -> None:
    ids = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(0))
    expected = tiny(ids).detach()
    round_linears(tiny, "int8")
    assert float((tiny(ids).detach() - expected).norm() / expected.norm()) < 0.05


def test_rounding_twice_changes_nothing(tiny: Llama) -> None:
    round_linears(tiny, "int8")
    once = {path: linear.dense_weight() for path, linear in named_linears(tiny)}
    round_linears(tiny, "int8")
    for path, linear in named_linears(tiny):
        torch.testing.assert_close(linear.dense_weight(), once[path], rtol=1e-6, atol=0)


@pytest.mark.parametrize("to", ROUNDINGS)
def test_factors_are_rounded_each_and_stay_shared(build_llama, to: Rounding) -> None:
    tiny = build_llama(ffn_dim=192)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / 8

    group = [f"layers.0.mlp.{name}_proj" for name in ("gate", "up")]
    replace_group(tiny, {path: drawn(get_linear(tiny, path).out_features, 8) for path in group}, drawn(8, 64))
    alone = LowRankLinear(drawn(64, 8), drawn(8, 64))
    replace_linear(tiny, "layers.1.self_attn.o_proj", alone)
    before = linear_bytes(tiny)
    round_linears(tiny, to)
    gate, up = (get_linear(tiny, path) for path in group)
    assert isinstance(gate, RoundedLowRankLinear)
    assert isinstance(up, RoundedLowRankLinear)
    assert gate.V is up.V
    assert linear_bytes(tiny) < before / 3
    expected = (
        rounded(alone.U.detach().T.contiguous(), to).dense_weight().T @ rounded(alone.V.detach(), to).dense_weight()
    )
    assert torch.equal(get_linear(tiny, "layers.1.self_attn.o_proj").dense_weight(), expected)
    round_linears(tiny, "int8")  # and again, in another format
    gate, up = (get_linear(tiny, path) for path in group)
    assert gate.V is up.V


def test_blocks_must_fit_the_outputs_of_what_becomes_factors_first(build_llama) -> None:
    model = build_llama(head_dim=8, n_kv_heads=2, ffn_dim=192)
    check_rounding(model, "q4_0")
    with pytest.raises(UsageError, match="k_proj: q4_0 expects a width that is a multiple of 32, got 16"):
        check_rounding(model, "q4_0", is_factored_first=True)
    check_rounding(model, "int8", is_factored_first=True)
