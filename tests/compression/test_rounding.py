"""int8 for a whole model: every block Linear, nothing else, close to the model it came from."""

import torch

from puna.compression.rounding import quantize_int8
from puna.compression.sizes import linear_bytes
from puna.model.linears.int8 import Int8Linear
from puna.model.llama import Llama
from puna.model.surgery import named_linears


def test_every_block_linear_becomes_int8_and_embedding_and_head_stay(tiny: Llama) -> None:
    dense, config = linear_bytes(tiny), tiny.config
    quantize_int8(tiny)
    assert all(type(linear) is Int8Linear for _, linear in named_linears(tiny))
    assert type(tiny.lm_head) is torch.nn.Linear
    assert tiny.lm_head.weight is tiny.embed_tokens.weight
    rows = sum(linear.out_features for _, linear in named_linears(tiny))
    assert linear_bytes(tiny) == dense // 4 + 4 * rows
    assert config is tiny.config


def test_the_rounded_model_stays_within_a_few_percent_of_its_logits(tiny: Llama) -> None:
    ids = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(0))
    expected = tiny(ids).detach()
    quantize_int8(tiny)
    assert float((tiny(ids).detach() - expected).norm() / expected.norm()) < 0.05


def test_rounding_twice_changes_nothing(tiny: Llama) -> None:
    quantize_int8(tiny)
    once = {path: linear.dense_weight() for path, linear in named_linears(tiny)}
    quantize_int8(tiny)
    for path, linear in named_linears(tiny):
        torch.testing.assert_close(linear.dense_weight(), once[path], rtol=1e-6, atol=0)
