"""A block: attention, then a feed-forward network; each reads a norm of the stream and adds to the stream itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from puna.arch.config import ModelConfig
from puna.arch.modules import norm_count
from puna.arch.presets import find_preset
from puna.arch.variants import NormKind, Placement
from puna.jobs.sections import model_drawing
from puna.model.attention import attend_causally
from puna.model.block import BLOCKS, Block
from puna.model.norms import NORMS
from puna.model.walk import Stage, walk
from puna.planning import counting
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Part, Shown, Symbol, Topic, Value
from puna.topics.words import Words

__all__ = ["TOPIC"]

_MOST_LAYERS = 12  # shown
_PLACEMENTS: tuple[tuple[Placement, NormKind], ...] = (("pre", "rms"), ("post", "layer"))  # Llama's, the notes'
_STEPS = {
    "input_layernorm": "normed",
    "self_attn": "attention",
    "post_attention_layernorm": "normed_sum",
    "mlp": "feed_forward",
}


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    config, llama = subject.config, subject.llama
    numbers = _parameters(config, words)
    if llama is not None:
        layers = [_steps(stage) for stage in walk(llama, subject.ids_BT)]
        numbers |= _of_a_pass(layers, words)
        if config.norm_placement == "pre":
            added = layers[0]["sum"] + layers[0]["feed_forward"]
            numbers["sum_difference"] = float((added - layers[0]["out"]).abs().max() / added.abs().max())
    return Shown(
        parts=(Part(name="model", numbers=numbers), Part(name="placements", numbers=_placements(subject, words))),
        pictures={} if config.exchanged else {"block": model_drawing(config)},  # what is drawn is a Llama
    )


def _parameters(config: ModelConfig, words: Words) -> dict[str, Value]:
    """Of each part, in the first layer and in the whole model."""
    one, whole = Counter[str](), Counter[str]()
    for name, shape in counting.parameter_shapes(config).items():
        part = name.split(".")[2 if name.startswith("layers.") else 0]
        whole[part] += prod(shape)
        if name.startswith("layers.0."):
            one[part] += prod(shape)
    return {
        "layer_parameters": one.total(),
        "layers": config.n_layers,
        "parameters": counting.parameter_count(config),
        "parts": Grid(
            rows=list(whole),
            columns=[words.numbers["of_a_layer"], words.numbers["of_the_model"]],
            values=[[one.get(part, ""), whole[part]] for part in whole],
        ),
    }


def _steps(stage: Stage) -> dict[str, Tensor]:
    """What a layer makes of the stream, each (1, T, width), in the order in which it is made."""
    made = {"stream": stage.x_BTD}

    def rotate(x_BTHE: Tensor) -> Tensor:
        name, turned_BTHE = "k" if "q" in made else "q", stage.rotate(x_BTHE)
        made[name] = x_BTHE.flatten(2)
        if turned_BTHE is not x_BTHE:
            made[f"turned_{name}"] = turned_BTHE.flatten(2)
        return turned_BTHE

    def attend(q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, sink_H: Tensor | None) -> Tensor:
        y_BHTE = stage.attend(q_BHTE, k_BGSE, v_BGSE, sink_H)
        made.update(v=v_BGSE.transpose(1, 2).flatten(2), mixed=y_BHTE.transpose(1, 2).flatten(2))
        return y_BHTE

    def keep(name: str, _: nn.Module, __: object, y_BTD: Tensor) -> None:
        made[name] = y_BTD
        if name == "attention":
            made["sum"] = stage.x_BTD + y_BTD

    children = {name: child for name, child in stage.block.named_children() if name in _STEPS}
    hooks = [child.register_forward_hook(partial(keep, _STEPS[name])) for name, child in children.items()]
    made["out"] = stage.block(stage.x_BTD, rotate, attend, None)
    for hook in hooks:
        hook.remove()
    return made


def _of_a_pass(layers: Sequence[Mapping[str, Tensor]], words: Words) -> dict[str, Value]:
    """The first layer step by step, and what is added to the stream in every layer."""
    first, every = layers[0], -(-len(layers) // _MOST_LAYERS)
    columns = ("stream", "attention", "sum", "feed_forward", "out")
    return {
        "steps": Grid(
            rows=[words.numbers[name] for name in first],
            columns=[words.numbers["width"], words.numbers["length"]],
            values=[[x_BTD.shape[-1], _length(x_BTD)] for x_BTD in first.values()],
        ),
        "by_layer": Grid(
            rows=[*map(str, range(len(layers)))][::every],
            columns=[words.numbers[name] for name in columns],
            values=[[_length(made[name]) for name in columns] for made in layers[::every]],
        ),
    }


def _length(x_BTD: Tensor) -> float:
    """|x|, the mean over tokens."""
    return float(torch.linalg.vector_norm(x_BTD.double(), dim=-1).mean())


def _placements(subject: Subject, words: Words) -> dict[str, Value]:
    """Laws of both, and the stream through both, around the same branches."""
    numbers: dict[str, Value] = {}
    for placement, norm in _PLACEMENTS:
        numbers[f"{placement}_norms"] = norm_count(replace(subject.config, norm_placement=placement))
        numbers[f"{placement}_without_branches_difference"] = _without_branches_difference(placement, norm)
    if subject.llama is None:
        return numbers
    stages = list(walk(subject.llama, subject.ids_BT))
    streams = [[stages[0].x_BTD, stages[0].x_BTD]]
    for stage in stages:
        blocks = [_between_norms(stage, subject.config, *kind) for kind in _PLACEMENTS]
        pairs = zip(blocks, streams[-1], strict=True)
        streams.append([block(x_BTD, stage.rotate, stage.attend, None) for block, x_BTD in pairs])
    every = -(-len(streams) // _MOST_LAYERS)
    numbers["placement"] = Grid(
        rows=[words.numbers["before"], *map(str, range(len(stages)))][::every],
        columns=[words.numbers["pre"], words.numbers["post"]],
        values=[[*map(_length, pair)] for pair in streams[::every]],
    )
    return numbers


def _between_norms(stage: Stage, config: ModelConfig, placement: Placement, norm: NormKind) -> nn.Module:
    """A block of that placement around the stage's own branches."""
    with torch.device("meta"):
        block = BLOCKS[placement](config, layer=0)
    block.self_attn, block.mlp = stage.block.self_attn, stage.block.mlp
    for name in replace(config, norm_placement=placement).norm_names:
        setattr(block, name, NORMS[norm](config.dim, config.norm_eps).to(stage.x_BTD))
    return block


def _without_branches_difference(placement: Placement, norm: NormKind) -> float:
    """What a block whose branches are 0 gives, less x (pre-norm) or norm(norm(x)) (post-norm), at most."""
    config = replace(find_preset("tiny").config, norm=norm, norm_placement=placement)
    block, x_BTD = BLOCKS[placement](config, layer=0), torch.randn(1, 5, config.dim)
    for linear in (block.self_attn.o_proj, block.mlp.down_proj):
        nn.init.zeros_(linear.weight)
    expected = x_BTD
    if not isinstance(block, Block):
        expected = block.post_feedforward_layernorm(block.post_attention_layernorm(x_BTD))
    return float((block(x_BTD, lambda x: x, attend_causally, None) - expected).abs().max())


TOPIC = Topic(
    name="block",
    formula=(
        "u = x + attention(norm1(x))",
        "y = u + feed_forward(norm2(u))",
        "h = norm(y_L)",
    ),
    symbols=(
        Symbol(sign="x, u, y", axes="n d"),
        Symbol(sign="norm1, norm2, norm", axes="d"),
        Symbol(sign="attention", axes="n d"),
        Symbol(sign="feed_forward", axes="n d"),
    ),
    show=_show,
    code=("puna/model/block.py", "Block"),
    test=("tests/model/test_block.py", "test_each_half_reads_its_own_norm_and_adds_to_the_stream"),
)
