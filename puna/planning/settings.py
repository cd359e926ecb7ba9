"""What is planned: generating, training everything or training an adapter, on how many tokens, from which stored weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from puna.arch.modules import ADAPTABLE, LINEARS
from puna.errors import UsageError, unknown_name

__all__ = [
    "ADAM_8BIT",
    "ADAM_BFLOAT16",
    "ADAM_FLOAT32",
    "ADAM_MIXED",
    "BASES",
    "LOSSES",
    "AdamBytes",
    "Base",
    "FullTraining",
    "Inference",
    "LoraTraining",
    "Loss",
    "Method",
    "Settings",
    "Unfused",
]

Base = Literal["float32", "bfloat16", "int8", "nf4"]
Loss = Literal["chunked", "naive"]
Unfused = Literal["norms", "heads", "softmax"]
BASES: tuple[Base, ...] = get_args(Base)
LOSSES: tuple[Loss, ...] = get_args(Loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamBytes:
    """Bytes that AdamW holds for one trained parameter; `states` counts m, v and a float32 master copy if there is one."""

    weight: int
    gradient: int
    states: int


ADAM_FLOAT32 = AdamBytes(weight=4, gradient=4, states=8)
ADAM_MIXED = AdamBytes(weight=2, gradient=2, states=12)
ADAM_8BIT = AdamBytes(weight=4, gradient=4, states=2)
ADAM_BFLOAT16 = AdamBytes(weight=2, gradient=2, states=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """Nothing is trained; the batch's sequences are read in and continued with a key-value cache of `seq` tokens each."""

    kind: Literal["inference"] = "inference"


@dataclass(frozen=True, slots=True, kw_only=True)
class FullTraining:
    """Every parameter is trained with AdamW: in float32, or in bfloat16 beside a float32 master copy."""

    kind: Literal["full"] = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTraining:
    """The weights are frozen; a factor pair of `rank` beside each target is trained.

    ranks: where they differ, by target. magnitudes: each output row has a length of its own (DoRA).
    starts: the factors begin as a part of the base, which stands beside them a second time (PiSSA, OLoRA).
    """

    kind: Literal["lora"] = "lora"
    rank: int = 16
    targets: tuple[str, ...] = LINEARS
    ranks: Mapping[str, int] = field(default_factory=dict)
    magnitudes: bool = False
    starts: bool = False
    adam: AdamBytes = ADAM_FLOAT32

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"rank: expected at least 1, got {self.rank}", "8 and 16 are usual")
        for name in self.targets:
            if name not in ADAPTABLE:
                raise unknown_name("linear", name, ADAPTABLE)

    def rank_of(self, target: str) -> int:
        """The rank at a target."""
        return self.ranks.get(target, self.rank)


Method = Inference | FullTraining | LoraTraining


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One plan's choices; `base` is how the weights are stored, `unfused` which kernels keep more than they need to.

    packed: rows hold several documents, each with positions of its own and a mask that keeps them apart.
    """

    method: Method
    seq: int
    batch: int
    base: Base
    checkpointing: bool = False
    loss: Loss = "chunked"
    unfused: tuple[Unfused, ...] = ()
    packed: bool = False

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.type is int and getattr(self, item.name) < 1:
                raise UsageError(
                    f"{item.name}: expected at least 1, got {getattr(self, item.name)}", "2048 and 1 are usual"
                )
        if self.base not in BASES:
            raise unknown_name("base", self.base, BASES)
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)
        if self.method.kind == "full" and self.base in ("int8", "nf4"):
            raise UsageError(
                f"base: expected float32 or bfloat16 for full training, got {self.base}",
                "quantised weights cannot be trained; --train lora trains an adapter beside them",
            )

    @property
    def tokens(self) -> int:
        """Tokens processed at once."""
        return self.batch * self.seq

    @property
    def compute_bytes(self) -> int:
        """Bytes of one activation: float32 beside float32 weights, else 16 bits."""
        return 4 if self.base == "float32" else 2
