"""What a study is: arms that differ in one thing each, and what each is compared with."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from puna.adaptation.targets import attach
from puna.arch.config import ModelConfig
from puna.arch.modules import linear_shapes
from puna.compression.allocation import uniform_ranks
from puna.lab.probes import Probe
from puna.model.init import initialise
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, replace_linear
from puna.planning.counting import lora_parameters, parameter_count
from puna.weights.loading import load_llama

__all__ = ["Arm", "Study", "StudyMaker", "build_arm", "with_parameters"]

_FFN_STEP = 4  # widths of feed-forward networks are multiples of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One setting.

    against:  the arm that it is compared with, in the same seed; None: others are compared with it.
    training: fields of TrainingConfig that differ from the study's.
    share:    of the study's steps, where arms are matched in FLOPs instead of steps.
    keep:     below 1 each Linear of a layer is built as two factors with this share of its numbers.
    weights:  the type in which weights, gradients and moments are kept.
    exponent: sources share the tokens in proportion to their size to this power.
    lora:     an adapter beside the study's trained base is learned, on the last source alone.
    """

    name: str
    model: ModelConfig
    against: str | None = None
    training: Mapping[str, object] = field(default_factory=dict)
    share: float = 1.0
    keep: float = 1.0
    weights: Literal["float32", "bfloat16"] = "float32"
    exponent: float = 1.0
    lora: LoraSettings | None = None

    @property
    def parameters(self) -> int:
        """What it learns."""
        if self.lora is not None:
            return lora_parameters(self.model, self.lora.rank, self.lora.targets)
        return parameter_count(self.model) - self.saved_numbers

    @property
    def saved_numbers(self) -> int:
        """Those of its Linears that factors do without."""
        shapes = linear_shapes(self.model)
        ranks = uniform_ranks(self.model, self.keep) if self.keep < 1 else {}
        return sum(math.prod(shapes[name]) - rank * sum(shapes[name]) for name, rank in _by_name(ranks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Arms, and what is measured of each beside its loss.

    shown:   measures that its report draws or lists, by name.
    sources: kinds of text: one, or the language reference beside it. judged: those of them that arms are compared on.
    base:    what is trained first, once, for adapters to stand beside. rates: candidates, unless the recipe names some.
    compares_sizes: its loss is also drawn against parameters and against FLOPs a token.
    """

    name: str
    arms: Sequence[Arm]
    probes: Sequence[Probe]
    shown: Sequence[str]
    sources: Literal[1, 2] = 1
    judged: Sequence[int] = (0,)
    base: Arm | None = None
    rates: Sequence[float] = (1e-3, 3e-3)
    compares_sizes: bool = False

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        assert len(set(names)) == len(names), names
        assert all(arm.against is None or arm.against in names for arm in self.arms), names

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


StudyMaker = Callable[[ModelConfig], Study]
"""From the base model, a small Llama, to the study."""


def build_arm(arm: Arm, seed: int, device: torch.device, base: Path | None = None) -> Llama:
    """Its model before the first step, the same on every device. Args: base: the trained one; None: fresh weights stand in."""
    model = Llama(arm.model)
    if arm.lora is not None:
        model = initialise(model, seed) if base is None else load_llama(base)
        attach(model, arm.lora, seed)
        return model.to(device)
    if arm.keep < 1:
        for path, rank in uniform_ranks(arm.model, arm.keep).items():
            dense = get_linear(model, path)
            replace_linear(model, path, LowRankLinear.empty(dense.out_features, dense.in_features, rank))
    return initialise(model, seed).to(device, getattr(torch, arm.weights))


def _by_name(ranks: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    return ((path.rpartition(".")[2], rank) for path, rank in ranks.items())


def with_parameters(config: ModelConfig, parameters: int) -> ModelConfig:
    """The model with its feed-forward width chosen so that it holds as many parameters as can be, within a few thousandths."""
    narrow, wide = (parameter_count(replace(config, ffn_dim=width)) for width in (_FFN_STEP, 2 * _FFN_STEP))
    steps = round((parameters - narrow) / (wide - narrow))
    return replace(config, ffn_dim=_FFN_STEP * (1 + max(0, steps)))
