"""A block: attention, then a feed-forward network; each reads a norm of the stream and adds to the stream itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from puna.arch.config import ModelConfig
from puna.arch.modules import norm_count
from puna.arch.presets import find_preset
from puna.arch.variants import NormKind, Placement
from puna.jobs.sections import model_drawing
from puna.model.attention import attend_causally
from puna.model.block import BLOCKS, Block, PostNormBlock
from puna.model.norms import NORMS
from puna.model.walk import Stage, walk
from puna.planning.counting import parameter_count, parameter_shapes
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, relative_difference, watching
from puna.topics.words import Words

__all__ = ["TOPIC"]

_MOST_LAYERS = 12  # shown
_PLACEMENTS: tuple[tuple[Placement, NormKind], ...] = (("pre", "rms"), ("post", "layer"))  # Llama's, the notes'
_STEPS = {
    "input_layernorm": "normed", "self_attn": "attention", "post_attention_layernorm": "normed_sum", "mlp": "feed_forward",
}  # fmt: skip
_STREAM = ("stream", "attention", "sum", "feed_forward", "out")


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    config, numbers, placements = subject.config, _parameters(subject.config, words), _laws(subject.config)
    if subject.llama is not None:
        stages = list(walk(subject.llama, subject.ids_BT))
        layers = [_steps(stage) for stage in stages]
        first = layers[0]
        numbers["steps"] = Grid.of(
            words.of("width", "length"), {words.numbers[name]: [x.shape[-1], _length(x)] for name, x in first.items()}
        )
        rows = {str(layer): [made[name] for name in _STREAM] for layer, made in enumerate(layers)}
        numbers["by_layer"] = _by_layer(words.of(*_STREAM), rows)
        if config.norm_placement == "pre":
            numbers["sum_difference"] = relative_difference(first["out"], first["sum"] + first["feed_forward"])
        placements["placement"] = _through_both(stages, config, words)
    pictures = {} if config.exchanged else {"block": model_drawing(config)}  # what is drawn is a Llama
    return Shown.of(model=numbers, placements=placements, pictures=pictures)


def _parameters(config: ModelConfig, words: Words) -> dict[str, Value]:
    """Of each part, in the first layer and in the whole model."""
    one, whole = Counter[str](), Counter[str]()
    for name, shape in parameter_shapes(config).items():
        part = name.split(".")[2 if name.startswith("layers.") else 0]
        whole[part] += prod(shape)
        if name.startswith("layers.0."):
            one[part] += prod(shape)
    rows = {part: [one.get(part, ""), count] for part, count in whole.items()}
    return {
        "layer_parameters": one.total(),
        "layers": config.n_layers,
        "parameters": parameter_count(config),
        "parts": Grid.of(words.of("of_a_layer", "of_the_model"), rows),
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

    def keep(name: str, _: Tensor, y_BTD: Tensor) -> None:
        made[_STEPS[name]] = y_BTD
        if name == "self_attn":
            made["sum"] = stage.x_BTD + y_BTD

    with watching({name: child for name, child in stage.block.named_children() if name in _STEPS}, keep):
        made["out"] = stage.block(stage.x_BTD, rotate, attend, None)
    return made


def _length(x_BTD: Tensor) -> float:
    """|x|, the mean over tokens."""
    return float(torch.linalg.vector_norm(x_BTD.double(), dim=-1).mean())


def _by_layer(columns: Sequence[str], rows: Mapping[str, Sequence[Tensor]]) -> Grid:
    """Lengths, of so many layers at most."""
    every = -(-len(rows) // _MOST_LAYERS)
    return Grid.of(columns, {layer: [*map(_length, rows[layer])] for layer in list(rows)[::every]})


def _laws(config: ModelConfig) -> dict[str, Value]:
    """How many norms each placement has; what its block gives if its branches give 0, less x or norm(norm(x))."""
    numbers: dict[str, Value] = {}
    for placement, norm in _PLACEMENTS:
        small = replace(find_preset("tiny").config, norm=norm, norm_placement=placement)
        block, x_BTD = BLOCKS[placement](small, layer=0), torch.randn(1, 5, small.dim)
        for linear in (block.self_attn.o_proj, block.mlp.down_proj):
            nn.init.zeros_(linear.weight)
        expected_BTD = x_BTD
        if isinstance(block, PostNormBlock):
            expected_BTD = block.post_feedforward_layernorm(block.post_attention_layernorm(x_BTD))
        y_BTD = block(x_BTD, lambda x: x, attend_causally, None)
        numbers[f"{placement}_norms"] = norm_count(replace(config, norm_placement=placement))
        numbers[f"{placement}_without_branches_difference"] = float((y_BTD - expected_BTD).abs().max())
    return numbers


def _through_both(stages: Sequence[Stage], config: ModelConfig, words: Words) -> Grid:
    """The stream with norms in both places, around the model's own branches."""
    streams = [stages[0].x_BTD, stages[0].x_BTD]
    rows = {words.numbers["before"]: streams}
    for layer, stage in enumerate(stages):
        pairs = zip(_PLACEMENTS, streams, strict=True)
        streams = [replace(stage, block=_with_norms(stage, config, *kind), x_BTD=x_BTD).run() for kind, x_BTD in pairs]
        rows[str(layer)] = streams
    return _by_layer(words.of("pre", "post"), rows)


def _with_norms(stage: Stage, config: ModelConfig, placement: Placement, norm: NormKind) -> Block | PostNormBlock:
    """A block of that placement around the stage's own branches."""
    with torch.device("meta"):
        block = BLOCKS[placement](config, layer=0)
    block.self_attn, block.mlp = stage.block.self_attn, stage.block.mlp
    for name in replace(config, norm_placement=placement).norm_names:
        setattr(block, name, NORMS[norm](config.dim, config.norm_eps).to(stage.x_BTD))
    return block


TOPIC = Topic(
    name="block",
    formula=("u = x + attention(norm1(x))", "y = u + feed_forward(norm2(u))", "h = norm(y_L)"),
    symbols={"x, u, y": "n d", "norm1, norm2, norm": "d", "attention": "n d", "feed_forward": "n d"},
    show=_show,
    code=("puna/model/block.py", "Block"),
    test=("tests/model/test_block.py", "test_each_half_reads_its_own_norm_and_adds_to_the_stream"),
)
