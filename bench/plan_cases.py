"""The settings of bench/plan.py: those that the planner's constants were fixed on, and those that judge it.

FIXED stay as they are. JUDGED vary method, base, precision, checkpointing, batch, length, packing, micro-batches, targets,
rank, tied heads, groups of heads, depth and vocabulary; each is planned to grow by 1 to 4.5 GiB and to take at most about
25 s a step at 50 GFLOP/s. What this kind of machine multiplies slowly (16 bits, int8) has few tokens, and its memory from
a large vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from train import CONFIG

from puna.adaptation.targets import attach
from puna.arch.config import ModelConfig
from puna.arch.modules import EMBEDDING, HEAD, LINEARS, linear_paths, match_linears
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.int8 import Int8WeightLinear
from puna.model.linears.nf4 import Nf4Linear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, replace_linear
from puna.planning.settings import Base, FullTraining, LoraTraining, Settings
from puna.training.config import Precision

__all__ = ["FIXED", "JUDGED", "Case", "build", "settings_of"]

MODEL = replace(CONFIG, max_seq_len=4096)
WIDE = replace(MODEL, dim=1024, n_heads=16, n_kv_heads=4, ffn_dim=2816)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {}, "rslora": {"rank_stabilized": True}, "dora": {"magnitudes": True}, "pissa": {"start": "pissa"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting. adapter: None trains everything. batch: rows of each of `micro_batches`.

    wide: float32 for all that is not rounded beside an int8 or NF4 base.
    """

    name: str
    model: ModelConfig = MODEL
    adapter: Literal["lora", "rslora", "dora", "pissa"] | None = None
    rank: int = 16
    targets: tuple[str, ...] = LINEARS
    base: Base = "float32"
    wide: bool = False
    precision: Precision = "float32"
    checkpointing: bool = False
    batch: int = 8
    micro_batches: int = 1
    seq: int = 512
    packed: bool = False


FIXED = (
    Case(name="full"),
    Case(name="full batch 2", batch=2),
    Case(name="full wide", model=WIDE, batch=4),
    Case(name="full wide, 256 tokens", model=WIDE, batch=1, seq=256),
    Case(name="full vocabulary", model=replace(MODEL, vocab_size=65_536), batch=4),
    Case(name="full autocast", precision="bfloat16", batch=1, seq=64),
    Case(name="lora", adapter="lora"),
    Case(name="dora", model=WIDE, adapter="dora", batch=3),
    Case(name="lora int8", model=WIDE, adapter="lora", base="int8", wide=True, batch=4),
    Case(name="lora nf4 checkpointing", model=WIDE, adapter="lora", base="nf4", wide=True, batch=4, checkpointing=True),
)
VOCABULARY = replace(MODEL, vocab_size=65_536)
LARGEST = replace(MODEL, vocab_size=131_072, dim=1024, n_heads=16, n_kv_heads=4, ffn_dim=2816, n_layers=2)
TIED = replace(VOCABULARY, tied_embeddings=True)
EVERY_HEAD = replace(MODEL, n_kv_heads=8)
DEEP = replace(MODEL, dim=384, n_layers=24, n_heads=6, n_kv_heads=2, ffn_dim=1024)
SHALLOW = replace(MODEL, dim=2048, n_layers=2, n_heads=32, n_kv_heads=8, ffn_dim=5632)
ENDS = (EMBEDDING, *LINEARS, HEAD)
ATTENTION, MLP = match_linears("attention"), match_linears("mlp")
JUDGED = (
    Case(name="full wide, few tokens", model=replace(WIDE, n_layers=20), batch=1, seq=128),
    Case(name="full wide, checkpointing", model=WIDE, batch=2, seq=256, checkpointing=True),
    Case(name="full wide, micro-batches", model=replace(WIDE, n_layers=12), batch=1, micro_batches=4, seq=128),
    Case(name="full, vocabulary 131,072", model=replace(MODEL, vocab_size=131_072), batch=1, seq=256),
    Case(name="full, tied, vocabulary 65,536", model=TIED, batch=2),
    Case(name="full, batch 12", batch=12),
    Case(name="full, one long row", batch=1, seq=4096),
    Case(name="full packed", batch=4, seq=1024, packed=True),
    Case(
        name="full packed, long rows, checkpointing",
        model=VOCABULARY,
        batch=1,
        seq=2048,
        packed=True,
        checkpointing=True,
    ),
    Case(name="full, every head its own keys", model=EVERY_HEAD, batch=8),
    Case(name="full, deep and narrow", model=DEEP, batch=4),
    Case(
        name="full, deep and narrow, checkpointing", model=replace(DEEP, vocab_size=65_536), batch=3, checkpointing=True
    ),
    Case(name="full, shallow and wide", model=replace(SHALLOW, n_layers=3), batch=1, seq=384),
    Case(name="full, shallow and wide, micro-batches", model=SHALLOW, batch=1, micro_batches=3, seq=256),
    Case(name="full wide autocast", model=WIDE, precision="bfloat16", batch=1, seq=64),
    Case(name="lora, vocabulary 65,536", model=VOCABULARY, adapter="lora", batch=4),
    Case(name="lora, tied, vocabulary 65,536", model=TIED, adapter="lora", rank=8, batch=5),
    Case(name="lora wide", model=WIDE, adapter="lora", batch=4),
    Case(name="lora wide, rank 4, attention", model=WIDE, adapter="lora", rank=4, targets=ATTENTION, batch=4),
    Case(name="lora wide, rank 128", model=WIDE, adapter="lora", rank=128, batch=3),
    Case(name="lora wide, feed-forward network", model=WIDE, adapter="lora", targets=MLP, batch=4),
    Case(
        name="lora wide, q_proj and v_proj", model=WIDE, adapter="lora", rank=8, targets=("q_proj", "v_proj"), batch=4
    ),
    Case(
        name="lora, embedding and head",
        model=replace(VOCABULARY, vocab_size=131_072),
        adapter="lora",
        targets=ENDS,
        rank=32,
        batch=2,
    ),
    Case(name="lora packed", adapter="lora", batch=2, seq=2048, packed=True),
    Case(
        name="lora, packed, checkpointing, rank 64",
        model=replace(WIDE, vocab_size=65_536),
        adapter="lora",
        batch=2,
        seq=512,
        packed=True,
        checkpointing=True,
        rank=64,
    ),
    Case(name="lora, micro-batches", adapter="lora", batch=8, micro_batches=2),
    Case(name="lora, deep and narrow", model=DEEP, adapter="lora", batch=4),
    Case(
        name="lora, shallow and wide, checkpointing",
        model=replace(SHALLOW, vocab_size=32_768),
        adapter="lora",
        batch=3,
        seq=448,
        checkpointing=True,
    ),
    Case(name="lora, every head its own keys", model=EVERY_HEAD, adapter="lora", rank=64, batch=8),
    Case(name="rslora wide, rank 64", model=replace(WIDE, n_layers=16), adapter="rslora", rank=64, batch=2),
    Case(name="rslora, batch 12", adapter="rslora", rank=32, batch=12),
    Case(name="dora wide", model=WIDE, adapter="dora", batch=2),
    Case(name="dora, rank 64, attention", adapter="dora", rank=64, targets=ATTENTION, batch=12),
    Case(name="dora, deep and narrow", model=DEEP, adapter="dora", rank=8, batch=3),
    Case(name="pissa", adapter="pissa"),
    Case(name="pissa wide, rank 64", model=WIDE, adapter="pissa", rank=64, batch=2),
    Case(name="lora wide nf4", model=WIDE, adapter="lora", base="nf4", wide=True, batch=4),
    Case(
        name="dora wide nf4, checkpointing",
        model=replace(WIDE, vocab_size=131_072),
        adapter="dora",
        base="nf4",
        wide=True,
        batch=1,
        checkpointing=True,
    ),
    Case(name="lora int8, vocabulary 131,072", model=LARGEST, adapter="lora", base="int8", wide=True, batch=1),
    Case(
        name="lora bfloat16, vocabulary 131,072",
        model=replace(LARGEST, dim=1536, n_heads=24, n_kv_heads=6),
        adapter="lora",
        base="bfloat16",
        batch=1,
        seq=32,
    ),
)


def build(case: Case) -> Llama:
    """Random weights in the base's form, a tensor at a time, and the adapter."""
    with torch.device("meta"):
        model = Llama(case.model)
    model.position.restore("cpu")
    dtype = torch.float32 if case.base == "float32" or case.wide else torch.bfloat16
    paths = list(linear_paths(case.model)) if case.base in ("int8", "nf4") else []
    for path in paths:
        linear = get_linear(model, path)
        weight = torch.empty(linear.out_features, linear.in_features, dtype=dtype).normal_(0, 0.02)
        replace_linear(model, path, (Int8WeightLinear if case.base == "int8" else Nf4Linear).from_dense(weight))
    for name, weight in list(model.named_parameters()):
        parent, _, own = name.rpartition(".")
        drawn = torch.empty(weight.shape, dtype=dtype).normal_(1.0 if weight.dim() == 1 else 0.0, 0.02)
        setattr(model.get_submodule(parent), own, torch.nn.Parameter(drawn))
    if case.model.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    if case.adapter is not None:
        attach(
            model, LoraSettings(rank=case.rank, alpha=case.rank, targets=case.targets, **KINDS[case.adapter]), seed=0
        )
    return model


def settings_of(case: Case) -> Settings:
    """What the planner is asked."""
    lora = LoraTraining(
        rank=case.rank, targets=case.targets, magnitudes=case.adapter == "dora", starts=case.adapter == "pissa"
    )
    return Settings(
        method=lora if case.adapter else FullTraining(),
        seq=case.seq,
        batch=case.batch,
        base=case.base,
        checkpointing=case.checkpointing,
        packed=case.packed,
        own_loop=True,
        autocast=case.precision != "float32",
        accumulates=case.micro_batches > 1,
        is_wide=case.wide,
    )
