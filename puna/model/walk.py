"""A forward pass one layer at a time, for those who look inside: what reaches each layer, and what its attention sees."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.model.attention import Attend
from puna.model.block import Block, PostNormBlock
from puna.model.llama import Llama
from puna.model.positions import Rotate
from puna.model.visibility import ways_to_attend

__all__ = ["AttentionView", "Stage", "look_inside", "walk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A layer, and all that `Llama.hidden` would give it."""

    block: Block | PostNormBlock
    x_BTD: Tensor
    rotate: Rotate
    attend: Attend

    def run(self, attend: Attend | None = None) -> Tensor:
        """The stream after the layer. Args: attend: in place of its own."""
        return self.block(self.x_BTD, self.rotate, self.attend if attend is None else attend, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionView:
    """What a layer's attention reads, after rotation, and what it makes of it. Args: sink_H: None where heads have none."""

    q_BHTE: Tensor
    k_BGSE: Tensor
    v_BGSE: Tensor
    sink_H: Tensor | None
    y_BHTE: Tensor


def walk(model: Llama, ids_BT: Tensor) -> Iterator[Stage]:
    """Each layer with what reaches it; the stream goes on through the layer itself."""
    ids_BT = ids_BT.to(model.device)
    positions_BT = torch.arange(ids_BT.shape[1], device=model.device)[None]
    x_BTD = model.position.add(model.embed_tokens(ids_BT).to(model.dtype), positions_BT)
    rotate = model.position.rotation(positions_BT)
    ways = ways_to_attend(model.config, ids_BT.shape[1], None, None, model.device, x_BTD.dtype)
    for block, attend in zip(model.layers, ways, strict=True):
        assert isinstance(block, Block | PostNormBlock)
        stage = Stage(block=block, x_BTD=x_BTD, rotate=rotate, attend=attend)
        yield stage
        x_BTD = stage.run()


def look_inside(stage: Stage) -> AttentionView:
    """Run the layer once more and keep what passes through its attention."""
    seen: list[AttentionView] = []

    def watch(q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, sink_H: Tensor | None) -> Tensor:
        y_BHTE = stage.attend(q_BHTE, k_BGSE, v_BGSE, sink_H)
        seen.append(AttentionView(q_BHTE=q_BHTE, k_BGSE=k_BGSE, v_BGSE=v_BGSE, sink_H=sink_H, y_BHTE=y_BHTE))
        return y_BHTE

    stage.run(watch)
    return seen[0]
