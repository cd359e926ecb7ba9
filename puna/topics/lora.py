"""LoRA: a frozen weight with a narrow update beside it; how many numbers that is, and how large the update."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from puna.adaptation.merge import merge
from puna.adaptation.targets import attach, named_loras
from puna.arch.config import ModelConfig
from puna.arch.modules import LINEAR_GROUPS, LINEARS, linear_path
from puna.arch.presets import find_preset
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.kind import dense_linear, dense_weight
from puna.model.linears.lora import LoraLinear
from puna.model.llama import Llama
from puna.model.surgery import get_linear
from puna.planning.counting import lora_parameters, lora_per_module, parameter_count
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, relative_difference
from puna.topics.words import Words

__all__ = ["TOPIC"]

_FACTORS = (0.5, 1, 2, 4)  # alpha over rank: 8, 16, 32 and 64 at rank 16
_PATH = linear_path(0, "q_proj")
_RANK = 16  # the notes'
_PRESETS = ("llama-2-7b", "llama-3-8b", "llama-3-70b")


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    rank, config = subject.sizes["r"], subject.config
    count = lora_parameters(config, rank)
    alphas = [LoraSettings(rank=rank, alpha=factor * rank, targets=LINEARS) for factor in _FACTORS]
    numbers: dict[str, Value] = {
        "layer_parameters": sum(lora_per_module(config, rank).values()),
        "parameters": count,
        "percent_of_model": 100 * count / parameter_count(config),
    }
    columns, rows = ["parameters", "scale"], {f"{each.alpha:g}": [count, each.scale_of(_PATH)] for each in alphas}
    if subject.llama is not None:
        updates = [_update(dense_weight(get_linear(subject.llama, _PATH)), each) for each in alphas]
        if not config.altered_parts:  # of a variant for study nothing is adapted
            numbers |= _laws(subject.llama, subject.ids_BT, alphas[2])
        numbers["rank_of_update"] = int(torch.linalg.matrix_rank(updates[0], rtol=1e-4))
        columns.append("update_norm")
        for row, update_oi in zip(rows.values(), updates, strict=True):
            row.append(float(update_oi.norm()))
    numbers["by_alpha"] = Grid.of(words.of(*columns), rows)
    return Shown.of(model=numbers, example=_example(words))


def _laws(llama: Llama, ids_BT: Tensor, settings: LoraSettings) -> dict[str, Value]:
    """A copy of the model in float64 as it is, with a fresh adapter, with one that has learned, and with that merged."""
    model = deepcopy(llama).double()
    base = model(ids_BT)
    attach(model, settings, seed=0)
    first = model(ids_BT)
    for _, lora in named_loras(model):
        _learn(lora.B)
    attached = model(ids_BT)
    merge(model)
    return {
        "first_output_difference": float((first - base).abs().max()) / float(attached.abs().max()),
        "moved": relative_difference(base, attached),
        "merged_difference": relative_difference(model(ids_BT), attached),
    }


def _learn(B_oR: Tensor) -> None:
    """Stand-in for training: a B that is no longer zero."""
    B_oR.normal_(std=0.02)


def _update(weight_oi: Tensor, settings: LoraSettings) -> Tensor:
    """W' - W, with the same A and B for all settings of a rank."""
    lora = LoraLinear(dense_linear(weight_oi), settings, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    _learn(lora.B)
    return lora.dense_weight() - weight_oi


def _example(words: Words) -> dict[str, Value]:
    """The notes' table for Llama 3 8B beside the right one; and what their rule makes of other models."""
    models = dict[str, tuple[float, ...]]()
    for name in _PRESETS:
        config = find_preset(name).config
        notes, right = (lora_parameters(each, _RANK) for each in (_as_in_the_notes(config), config))
        models[name] = (notes, right, round(100 * (notes / right - 1), 1))
    example = find_preset("llama-3-8b").config
    by_notes, counted = _counted(_as_in_the_notes(example)), _counted(example)
    table = {words.numbers.get(name, name): (by_notes[name], counted[name]) for name in counted}
    return {
        "table": Grid.of(words.of("notes", "right"), table),
        "models": Grid.of(words.of("by_rule", "counted", "percent_too_many"), models),
    }


def _as_in_the_notes(config: ModelConfig) -> ModelConfig:
    """Every attention matrix d x d: as if keys and values had as many heads as queries."""
    return replace(config, n_kv_heads=config.n_heads)


def _counted(config: ModelConfig) -> dict[str, int]:
    """What an adapter of the notes' rank adds, part by part."""
    modules = lora_per_module(config, _RANK)
    layer = {group: sum(modules[name] for name in LINEAR_GROUPS[group]) for group in ("attention", "mlp", "all")}
    return modules | layer | {"model": lora_parameters(config, _RANK)}


TOPIC = Topic(
    name="lora",
    formula=(
        "W' = W + (alpha / r) B A",
        "A ~ U(-1 / sqrt(d_in), 1 / sqrt(d_in)),  B = 0",
        "r (d_in + d_out) numbers for each Linear",
    ),
    symbols={"W": "h*d_h d", "A": "r d", "B": "h*d_h r", "alpha / r": "0.5 ... 4"},
    show=_show,
    code=("puna/model/linears/lora.py", "LoraLinear"),
    test=("tests/adaptation/test_merge.py", "test_merged_equals_attached"),
)
