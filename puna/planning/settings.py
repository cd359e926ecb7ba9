"""What is planned: generating, training everything or training an adapter, on how many tokens, from which stored weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    "Compressed",
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
class Compressed:
    """What a compressed model holds in place of its dense matrices; counted in numbers, but for what is stored in few bits.

    linears, rounded_bytes: of the blocks' Linears, numbers in the base's type, and bytes of codes and scales.
    parameters: of the blocks' Linears, those of few bits counted as what they stand for.
    widened: of few bits, the most numbers that are made dense for one product.
    table, head: numbers of the input table, and of a head that does not share it. is_table_factored: it is no dense matrix.
    products, head_products: numbers that a token is multiplied with, by the block Linear's name over all layers; the head's.
    """

    linears: int
    rounded_bytes: int
    parameters: int
    widened: int
    table: int
    head: int
    is_table_factored: bool
    products: Mapping[str, int]
    head_products: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One plan's choices; `base` is how the weights are stored, `unfused` which kernels keep more than they need to.

    packed: rows hold several documents, each with positions of its own and a mask that keeps them apart.
    own_loop: this project's own layers also in 16 bits; else fused kernels, as in docs/math.md. float32 is always ours.
    autocast: products in 16 bits beside float32 weights. accumulates: a step adds up several such batches.
    is_wide: float32 instead of 16 bits for all but the blocks' Linears of a base stored narrower: stream, embedding, head.
    integer_products: an int8 base rounds the inputs too; else each weight is made wide for its product.
    mapped: frozen matrices stay in their file; its pages are the system's to keep or forget, and are not counted.
    streamed_layers: frozen layers that lie in host memory and pass through two buffers on the device, twice a step.
    streamed_embedding: the input table stays in host memory; only the rows of a batch are copied.
    compressed: what stands in place of dense matrices. On an int8 or NF4 base the blocks' Linears are made anew, of dense ones.
    """

    method: Method
    seq: int
    batch: int
    base: Base
    checkpointing: bool = False
    loss: Loss = "chunked"
    unfused: tuple[Unfused, ...] = ()
    packed: bool = False
    own_loop: bool = False
    autocast: bool = False
    accumulates: bool = False
    is_wide: bool = False
    integer_products: bool = False
    mapped: bool = False
    streamed_layers: int = 0
    streamed_embedding: bool = False
    compressed: Compressed | None = None

    def __post_init__(self) -> None:
        for name in ("seq", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: expected at least 1, got {getattr(self, name)}", "2048 and 1 are usual")
        if self.base not in BASES:
            raise unknown_name("base", self.base, BASES)
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)
        if self.method.kind == "full" and self.base in ("int8", "nf4"):
            raise UsageError(
                f"base: expected float32 or bfloat16 for full training, got {self.base}",
                "quantised weights cannot be trained; --train lora trains an adapter beside them",
            )
        if self.method.kind == "full" and self.compressed is not None and self.compressed.rounded_bytes:
            raise UsageError(
                "full training: expected weights in floating point, got a model stored in few bits",
                "--train lora trains an adapter beside them",
            )
        if self.autocast and self.base != "float32":
            raise UsageError(f"autocast: expected base float32, got {self.base}", "a smaller base has 16-bit products")
        if self.is_wide and self.base == "float32":
            raise UsageError("is_wide: expected a base of fewer bits, got float32", "float32 is as wide as it gets")
        if self.integer_products and self.base != "int8":
            raise UsageError(f"integer_products: expected base int8, got {self.base}", "others multiply in floats")
        self._check_streaming()

    def _check_streaming(self) -> None:
        if self.streamed_layers < 0:
            raise UsageError(f"streamed_layers: expected at least 0, got {self.streamed_layers}", "0 streams nothing")
        if (self.streamed_layers or self.streamed_embedding) and self.method.kind != "lora":
            raise UsageError(
                f"streamed_layers: expected an adapter beside frozen weights, got {self.method.kind}",
                "only what is not trained can stay in host memory; --train lora trains an adapter",
            )

    @property
    def tokens(self) -> int:
        """Tokens processed at once."""
        return self.batch * self.seq

    @property
    def rounds_anew(self) -> bool:
        """Whether the blocks' Linears are made of dense ones as they are read, whatever the model stores."""
        return self.base in ("int8", "nf4")

    @property
    def compute_bytes(self) -> int:
        """Bytes of one number of the stream: float32 beside float32 weights, else 16 bits."""
        return 4 if self.base == "float32" or self.is_wide else 2

    @property
    def product_bytes(self) -> int:
        """Bytes of one number that a product gives."""
        return 2 if self.autocast else self.compute_bytes

    @property
    def is_own(self) -> bool:
        """Whether this project's own layers are counted, tensor by tensor."""
        return self.own_loop or self.base == "float32"
