"""Walking through a model's layers is its forward pass, and looking inside changes nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from puna.arch.attention_pattern import SlidingWindow
from puna.model.llama import Llama
from puna.model.walk import look_inside, walk

IDS_BT = torch.arange(24).view(2, 12) * 7 % 512
CHANGES = ({}, {"position": "sinusoidal"}, {"norm_placement": "post"}, {"pattern": SlidingWindow(window=4)})


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@torch.no_grad()
def test_the_last_layers_stream_is_what_the_final_norm_reads(build_llama: Callable[..., Llama], changes: dict) -> None:
    model = build_llama(**changes)
    *_, last = walk(model, IDS_BT)
    assert torch.equal(model.norm(last.run()), model.hidden(IDS_BT))


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@torch.no_grad()
def test_what_is_seen_inside_is_what_the_output_projection_reads(
    build_llama: Callable[..., Llama], changes: dict
) -> None:
    model, read = build_llama(**changes), list[Tensor]()
    hooks = [block.self_attn.o_proj.register_forward_pre_hook(lambda _, x: read.append(x[0])) for block in model.layers]
    model.hidden(IDS_BT)
    for hook in hooks:
        hook.remove()
    for stage, heads_BTD in zip(walk(model, IDS_BT), read, strict=True):
        view = look_inside(stage)
        assert torch.equal(view.y_BHTE.transpose(1, 2).flatten(2), heads_BTD)
        assert view.k_BGSE.shape == (2, model.config.n_kv_heads, 12, model.config.head_dim)
