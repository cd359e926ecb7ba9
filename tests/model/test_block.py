"""The pre-norm residual block. math.md 1.9."""

import torch
from torch import Tensor, nn

from puna.model.attention import attend_causally
from puna.model.block import Block
from puna.model.llama import Llama
from puna.model.positions import Rotate


def rotate(model: Llama, tokens: int) -> Rotate:
    return model.position.rotation(torch.arange(tokens)[None])


def stream(model: Llama) -> Tensor:
    return torch.randn(2, 7, model.config.dim, generator=torch.Generator().manual_seed(3))


def test_a_block_whose_outputs_are_zero_is_the_identity(tiny: Llama) -> None:
    block, x = tiny.layers[0], stream(tiny)
    assert isinstance(block, Block)
    nn.init.zeros_(block.self_attn.o_proj.weight)
    nn.init.zeros_(block.mlp.down_proj.weight)
    assert torch.equal(block(x, rotate(tiny, 7), attend_causally, None), x)


def test_each_half_reads_its_own_norm_and_adds_to_the_stream(tiny: Llama) -> None:
    block, x = tiny.layers[1], stream(tiny)
    u = x + block.self_attn(block.input_layernorm(x), rotate(tiny, 7), attend_causally, None)
    y = u + block.mlp(block.post_attention_layernorm(u))
    torch.testing.assert_close(block(x, rotate(tiny, 7), attend_causally, None), y, rtol=1e-5, atol=1e-5)
    assert (y - x).abs().mean() > 0.1


def test_norms_formed_again_on_the_way_back_give_the_gradients_of_norms_that_are_kept(tiny: Llama) -> None:
    block, x = tiny.layers[1], stream(tiny)
    for norm in (block.input_layernorm, block.post_attention_layernorm):
        nn.init.uniform_(norm.weight, 0.5, 2.0, generator=torch.Generator().manual_seed(4))
    u = x + block.self_attn(block.input_layernorm(x), rotate(tiny, 7), attend_causally, None)
    kept = u + block.mlp(block.post_attention_layernorm(u))
    formed_again = block(x, rotate(tiny, 7), attend_causally, None)
    gradients = (torch.autograd.grad(y.square().sum(), list(block.parameters())) for y in (formed_again, kept))
    for got, expected in zip(*gradients, strict=True):
        assert torch.equal(got, expected)


def test_without_its_attention_a_block_treats_every_token_alone(tiny: Llama) -> None:
    block, x = tiny.layers[0], stream(tiny)
    nn.init.zeros_(block.self_attn.o_proj.weight)
    whole = block(x, rotate(tiny, 7), attend_causally, None)
    alone = torch.cat([block(x[:, t : t + 1], rotate(tiny, 1), attend_causally, None) for t in range(7)], dim=1)
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)
