"""The studies: which arms answer which question, all made from one small Llama, the base.

Arms are matched in parameters by the width of the feed-forward network, and trained for as many steps on the same tokens.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from puna.arch.attention_pattern import Blocks, Hybrid, SlidingWindow
from puna.arch.config import ModelConfig
from puna.arch.modules import LINEARS
from puna.errors import unknown_name
from puna.lab.probes import (
    attention_milliseconds,
    dead_units,
    gradient_norms,
    nats_by_length,
    norm_microseconds,
    relative_update,
    score_statistics,
)
from puna.lab.study import Arm, Study, StudyMaker, with_parameters
from puna.model.linears.adapter import LoraSettings
from puna.planning.compute import forward_flops
from puna.planning.counting import parameter_count

__all__ = ["STUDIES", "find_study"]

_OF_SOURCES = ("nats_of_source_1", "nats_of_source_2")
_PROBES = (gradient_norms, score_statistics, dead_units, norm_microseconds)


def _ladder(base: ModelConfig) -> Study:
    """From the Transformer of 2017 to Llama 3, one change a step; each rung is compared with the one below."""
    old = replace(
        base, n_kv_heads=base.n_heads, norm="layer", norm_placement="post", position="sinusoidal", ffn="relu", mlp_bias=True
    )  # fmt: skip
    rungs: list[tuple[str, dict[str, object]]] = [
        ("transformer-2017", {}),
        ("+ pre-norm", {"norm_placement": "pre"}),
        ("+ RMSNorm", {"norm": "rms"}),
        ("+ SwiGLU", {"ffn": "swiglu"}),
        ("+ RoPE", {"position": "rope"}),
        ("no biases", {"mlp_bias": False}),
        ("grouped queries", {"n_kv_heads": base.n_kv_heads}),
    ]
    arms, config, below = list[Arm](), old, None
    for name, change in rungs:
        config = _matched(replace(config, **change), base)  # type: ignore[arg-type]
        arms.append(Arm(name=name, model=config, against=below))
        below = name
    return Study(name="ladder", arms=arms, probes=_PROBES, shown=("gradient_norm_by_layer", "cache_bytes_per_token"))


def _norms(base: ModelConfig) -> Study:
    """Each norm before the branches, and none; RMSNorm and LayerNorm at half the width too."""
    narrow = replace(base, dim=base.dim // 2, n_heads=base.n_heads // 2, n_kv_heads=max(1, base.n_kv_heads // 2),
                     ffn_dim=base.ffn_dim // 2)  # fmt: skip
    arms = [
        Arm(name="RMSNorm", model=base),
        Arm(name="LayerNorm", model=_matched(replace(base, norm="layer"), base), against="RMSNorm"),
        Arm(name="BatchNorm", model=_matched(replace(base, norm="batch"), base), against="RMSNorm"),
        Arm(name="no norm", model=_matched(replace(base, norm="none"), base), against="RMSNorm"),
        Arm(name="RMSNorm, half as wide", model=narrow),
        Arm(name="LayerNorm, half as wide", model=_matched(replace(narrow, norm="layer"), narrow),
            against="RMSNorm, half as wide"),
    ]  # fmt: skip
    return Study(
        name="norms",
        arms=arms,
        probes=_PROBES,
        shown=("gradient_norm_by_layer", "norm_microseconds", "norm_share_of_step"),
    )


def _activations(base: ModelConfig) -> Study:
    """Feed-forward networks of equal parameters; two of them also in a model of half the layers."""
    shallow = replace(base, n_layers=max(1, base.n_layers // 2))
    names = {"SwiGLU": "swiglu", "GEGLU": "geglu", "GLU": "glu", "ReLU": "relu", "Swish": "swish", "GELU": "gelu"}
    arms = [
        Arm(name=name, model=_matched(_with_ffn(base, kind), base), against=None if name == "ReLU" else "ReLU")
        for name, kind in names.items()
    ]
    for name in ("ReLU", "SwiGLU"):
        against = None if name == "ReLU" else "ReLU, half as deep"
        arms.append(
            Arm(name=f"{name}, half as deep", model=_matched(_with_ffn(shallow, names[name]), shallow), against=against)
        )
    return Study(name="activations", arms=arms, probes=_PROBES, shown=("gradient_norm_by_layer", "dead_units"))


def _positions(base: ModelConfig) -> Study:
    """Trained at the base's context, judged at four times that."""
    seq = base.max_seq_len // 4
    names = {"RoPE": "rope", "sinusoidal": "sinusoidal", "learned": "learned", "no positions": "none"}
    untrained = {"learned": (base.max_seq_len - seq) * base.dim}  # rows of its table that no token of training reads
    arms = []
    for name, kind in names.items():
        model = replace(base, position=kind)  # type: ignore[arg-type]
        model = with_parameters(model, parameter_count(base) + untrained.get(name, 0))
        arms.append(Arm(name=name, model=model, against=None if name == "RoPE" else "RoPE"))
    lengths = (seq // 2, seq, 2 * seq, 4 * seq)
    probes = (*_PROBES, nats_by_length(*lengths))
    return Study(name="positions", arms=arms, probes=probes, shown=tuple(f"nats_to_{length}" for length in lengths))


def _heads(base: ModelConfig) -> Study:
    """Fewer key-value heads, the parameters given to the feed-forward network instead."""
    many = replace(base, n_kv_heads=base.n_heads)
    counts = [count for count in range(base.n_heads, 0, -1) if base.n_heads % count == 0]
    arms = []
    for count in counts:
        name = {base.n_heads: "multi-head", 1: "multi-query"}.get(count, f"{count} key-value heads")
        model = with_parameters(replace(many, n_kv_heads=count), parameter_count(many))
        arms.append(Arm(name=name, model=model, against=None if count == base.n_heads else "multi-head"))
    return Study(name="heads", arms=arms, probes=_PROBES, shown=("cache_bytes_per_token",))


def _patterns(base: ModelConfig) -> Study:
    """Who attends to whom, at equal parameters: windows and blocks of a quarter of a row."""
    reach = base.max_seq_len // 16
    patterns = {
        "causal": base.pattern,
        f"window {reach}": SlidingWindow(window=reach),
        f"window {reach}, 4 sinks": SlidingWindow(window=reach, sinks=4),
        f"blocks {reach}": Blocks(size=reach),
        f"blocks {2 * reach}": Blocks(size=2 * reach),
        f"shifted blocks {reach}": Blocks(size=reach, shifted=True),
        f"window {reach}, every third layer full": Hybrid(window=reach, windows=2),
    }
    arms = [
        Arm(name=name, model=replace(base, pattern=pattern), against=None if name == "causal" else "causal")
        for name, pattern in patterns.items()
    ]
    probes = (*_PROBES, attention_milliseconds)
    shown = ("attended_share", *(f"attention_milliseconds_{tokens}" for tokens in (512, 1024, 2048, 4096)))
    return Study(name="patterns", arms=arms, probes=probes, shown=shown)


def _placement(base: ModelConfig) -> Study:
    """Norms before or after the branches, and none, at the base's depth and twice that; every rate is kept."""
    arms = []
    for layers, depth in ((base.n_layers, ""), (2 * base.n_layers, ", twice as deep")):
        deep = replace(base, n_layers=layers)
        arms += [
            Arm(name=f"pre-norm{depth}", model=deep),
            Arm(name=f"post-norm{depth}", model=replace(deep, norm_placement="post"), against=f"pre-norm{depth}"),
            Arm(name=f"no norms{depth}", model=replace(deep, norm="none"), against=f"pre-norm{depth}"),
        ]
    return Study(name="placement", arms=arms, probes=_PROBES, shown=("gradient_norm_by_layer",))


def _scale(base: ModelConfig) -> Study:
    """What scores are divided by."""
    arms = [
        Arm(name="q k / sqrt(d)", model=base),
        Arm(name="q k", model=replace(base, score_scale="1"), against="q k / sqrt(d)"),
        Arm(name="q k / d", model=replace(base, score_scale="1/d"), against="q k / sqrt(d)"),
    ]
    return Study(name="scale", arms=arms, probes=_PROBES,
                 shown=("score_variance_by_layer", "attention_entropy_by_layer", "gradient_norm_by_layer"))  # fmt: skip


def _size(base: ModelConfig) -> Study:
    """Half, once and twice the width at equal training FLOPs: the smaller reads more. And the smallest, at its equal cost of
    inference, reading twice as much again.
    """
    flops = _flops(base)
    arms = []
    for name, times in (("half as wide", 0.5), ("the base", 1.0), ("twice as wide", 2.0)):
        model = replace(
            base, dim=int(base.dim * times), n_heads=max(1, int(base.n_heads * times)), ffn_dim=int(base.ffn_dim * times),
            n_kv_heads=max(1, int(base.n_kv_heads * times)),
        )  # fmt: skip
        against = None if times == 1 else "the base"
        arms.append(Arm(name=name, model=model, against=against, share=flops / _flops(model)))
    small = arms[0]
    arms.append(replace(small, name=f"{small.name}, twice the tokens", against=small.name, share=2 * small.share))
    shown = ("flops_per_token", "cache_bytes_per_token")
    return Study(name="size", arms=arms, probes=_PROBES, shown=shown, compares_sizes=True)


def _optimizer(base: ModelConfig) -> Study:
    """AdamW against Muon for the blocks' matrices."""
    arms = [
        Arm(name="AdamW", model=base),
        Arm(name="Muon", model=base, against="AdamW", training={"optimizer": "muon"}),
    ]
    return Study(name="optimizer", arms=arms, probes=_PROBES, shown=("update_norm", "gradient_norm_by_layer"))


def _precision(base: ModelConfig) -> Study:
    """Products in bfloat16 beside float32 weights, and everything in bfloat16: no master weights."""
    arms = [
        Arm(name="float32", model=base),
        Arm(name="bfloat16 products", model=base, against="float32", training={"precision": "bfloat16"}),
        Arm(name="no master weights", model=base, against="bfloat16 products", weights="bfloat16"),
    ]
    return Study(name="precision", arms=arms, probes=_PROBES, shown=("update_norm",))


def _low_rank(base: ModelConfig) -> Study:
    """Built as factors from scratch, against a dense model of as many parameters, and against the dense model that they cut."""
    half = Arm(name="low rank, half kept", model=base, against="dense, as many numbers", keep=0.5)
    arms = [
        Arm(name="dense", model=base),
        Arm(name="dense, as many numbers", model=with_parameters(base, half.parameters), against="dense"),
        half,
    ]
    return Study(name="low-rank", arms=arms, probes=_PROBES, shown=("gradient_norm_by_layer",))


def _mixture(base: ModelConfig) -> Study:
    """A large source, code, and a small one, prose, sharing the tokens by their size to a power; judged on both alike."""
    arms = [
        Arm(
            name=f"exponent {exponent:g}",
            model=base,
            exponent=exponent,
            against=None if exponent == 1 else "exponent 1",
        )
        for exponent in (1.0, 0.7, 0.5, 0.3, 0.0)
    ]
    return Study(name="mixture", arms=arms, probes=_PROBES, shown=_OF_SOURCES, sources=2, judged=(0, 1))


def _lora(base: ModelConfig) -> Study:
    """Adapters beside one base that learned code, taught prose: what they gain there, and what they forget of code."""
    large = min(64, base.kv_dim)  # of which no matrix has fewer
    arms = [_adapted(base, f"rank {rank}", rank, 2.0, None if rank == 16 else "rank 16") for rank in (16, 4, large)]
    arms += [_adapted(base, f"rank 16, alpha = {ratio:g} r", 16, ratio, "rank 16") for ratio in (0.5, 1.0, 4.0)]
    for rank in (4, large):
        arms.append(_adapted(base, f"rank {rank}, stabilised", rank, 2.0, f"rank {rank}", stabilised=True))
    first = Arm(name="base", model=base, share=6.0, exponent=8.0)
    return Study(
        name="lora", arms=arms, probes=(relative_update,), shown=("gained", "forgotten", "relative_update"), sources=2,
        judged=(1,), base=first, rates=(1e-3, 3e-3, 1e-2),
    )  # fmt: skip


def _adapted(
    base: ModelConfig, name: str, rank: int, ratio: float, against: str | None, *, stabilised: bool = False
) -> Arm:
    """alpha = ratio times rank, the same scale at every rank; stabilised: the alpha that gives it at rank 16, over the root."""
    alpha = ratio * (4 if stabilised else rank)
    lora = LoraSettings(rank=rank, alpha=alpha, targets=LINEARS, rank_stabilized=stabilised)
    return Arm(name=name, model=base, against=against, lora=lora, training={"weight_decay": 0.0})


STUDIES: Mapping[str, StudyMaker] = MappingProxyType({
    "ladder": _ladder,
    "norms": _norms,
    "activations": _activations,
    "positions": _positions,
    "heads": _heads,
    "patterns": _patterns,
    "placement": _placement,
    "scale": _scale,
    "size": _size,
    "optimizer": _optimizer,
    "precision": _precision,
    "low-rank": _low_rank,
    "mixture": _mixture,
    "lora": _lora,
})  # fmt: skip


def find_study(name: str) -> StudyMaker:
    """The study of that name. Errors: UsageError offering the nearest name."""
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    return STUDIES[name]


def _matched(config: ModelConfig, base: ModelConfig) -> ModelConfig:
    return with_parameters(config, parameter_count(base))


def _with_ffn(config: ModelConfig, kind: str) -> ModelConfig:
    return replace(config, ffn=kind)  # type: ignore[arg-type]


def _flops(config: ModelConfig) -> float:
    return forward_flops(config, config.max_seq_len // 4).total
