"""ModelConfig: the numbers a model's weights depend on, checked once, at construction."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, get_args, get_origin

from puna.arch.attention_pattern import AttentionPattern, Causal, LayerPattern
from puna.arch.rope_scaling import NoScaling, RopeScaling
from puna.arch.variants import GATED, NORM_VECTORS, FeedForwardKind, NormKind, Placement, PositionKind, ScoreScale
from puna.errors import UsageError, unknown_name

__all__ = ["ModelConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Llama: pre-norm RMSNorm, RoPE, grouped-query attention, SwiGLU, no bias. What follows `tied_embeddings` makes variants
    for study; of those other programs read only a GEGLU, a GLU and biased Linears as a Llama.

    Source: Touvron et al. 2023, arXiv:2302.13971; Dubey et al. 2024, arXiv:2407.21783.
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    max_seq_len: int
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling = field(default_factory=NoScaling)
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    pattern: AttentionPattern = field(default_factory=Causal)
    norm: NormKind = "rms"
    norm_placement: Placement = "pre"
    position: PositionKind = "rope"
    ffn: FeedForwardKind = "swiglu"
    score_scale: ScoreScale = "1/sqrt"
    attention_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type is int and value < 1:
                raise UsageError(
                    f"model.{item.name}: expected at least 1, got {value}", "every size is a positive whole number"
                )
            if get_origin(item.type) is Literal and value not in get_args(item.type):
                raise unknown_name(f"value of model.{item.name}", str(value), get_args(item.type))
        if self.position != "rope" and not isinstance(self.rope_scaling, NoScaling):
            raise UsageError(
                f"model.rope_scaling: expected none with positions of kind {self.position}, got {self.rope_scaling.kind}",
                "only rotary positions are scaled",
            )
        if self.n_heads % self.n_kv_heads:
            raise UsageError(
                f"model.n_kv_heads: expected a divisor of n_heads = {self.n_heads}, got {self.n_kv_heads}",
                "each key-value head serves n_heads / n_kv_heads query heads",
            )
        if any(self.n_heads % len(pattern.parts) for pattern in self.layer_patterns):
            raise UsageError(
                f"model.n_heads: expected an even number for shifted blocks, got {self.n_heads}",
                "half of the heads see blocks that are shifted by half",
            )
        if self.head_dim % 2 and self.position == "rope":
            raise UsageError(
                f"model.head_dim: expected an even number, got {self.head_dim}", "RoPE rotates pairs of coordinates"
            )
        if not (self.norm_eps > 0 and self.rope_theta > 1):
            raise UsageError(
                f"model: expected norm_eps > 0 and rope_theta > 1, got {self.norm_eps} and {self.rope_theta}",
                "Llama 3 uses 1e-5 and 500000",
            )

    @property
    def variants(self) -> tuple[str, ...]:
        """What makes this something else than LlamaForCausalLM computes, in words."""
        pattern = () if isinstance(self.pattern, Causal) else (f"attention of kind {self.pattern.kind}",)
        return (*pattern, *self._own_parts)

    @property
    def _own_parts(self) -> tuple[str, ...]:
        """Of the variants those in the layers, the table or the head themselves, whoever attends to whom."""
        differs = {
            f"norms of kind {self.norm}": self.norm != "rms",
            "norms after each branch": self.norm_placement != "pre",
            f"positions of kind {self.position}": self.position != "rope",
            f"a feed-forward network of kind {self.ffn}": not self.is_gated,
            f"scores times {self.score_scale}": self.score_scale != "1/sqrt",
            "a head with a bias": self.head_bias,
        }
        return tuple(words for words, found in differs.items() if found)

    @property
    def exchanged(self) -> tuple[str, ...]:
        """All that differs from a real Llama, in words."""
        return tuple(dict.fromkeys((*self.variants, *self.altered_parts)))

    @property
    def altered_parts(self) -> tuple[str, ...]:
        """What differs from a Llama's layers themselves, whoever attends to whom: adapters and compression do not know it."""
        biases = {"attention": self.attention_bias, "feed-forward": self.mlp_bias}
        gate = () if self.ffn == "swiglu" or not self.is_gated else (f"a feed-forward network of kind {self.ffn}",)
        return (*self._own_parts, *gate, *(f"{part} with biases" for part, found in biases.items() if found))

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward network multiplies two projections."""
        return self.ffn in GATED

    @property
    def norm_names(self) -> tuple[str, ...]:
        """The norms of a layer, in order of use."""
        if self.norm_placement == "pre":
            return ("input_layernorm", "post_attention_layernorm")
        return ("post_attention_layernorm", "post_feedforward_layernorm")

    @property
    def norm_vectors(self) -> tuple[str, ...]:
        """What each norm stores, (D) each."""
        return NORM_VECTORS[self.norm]

    @property
    def score_factor(self) -> float:
        """What q k^T is multiplied by."""
        return {"1/sqrt": self.head_dim**-0.5, "1": 1.0, "1/d": 1 / self.head_dim}[self.score_scale]

    def require_llama(self, place: object) -> None:
        """Errors: UsageError: a variant for study, which adapters, rounding and compression do not know. Args: place: for it."""
        if self.altered_parts:
            raise UsageError(
                f"{place}: expected a Llama, got a variant: {', '.join(self.altered_parts)}",
                "train, evaluate and generate take variants; only a Llama is adapted, merged, rounded, mapped or compressed",
            )

    def is_biased(self, linear: str) -> bool:
        """Whether a Linear of this name adds a bias."""
        if linear == "lm_head":
            return self.head_bias
        return self.attention_bias if linear in ("q_proj", "k_proj", "v_proj", "o_proj") else self.mlp_bias

    @property
    def layer_patterns(self) -> Mapping[LayerPattern, int]:
        """What layers see, and how many of them."""
        return self.pattern.in_layers(self.n_layers)

    def has_sinks(self, layer: int) -> bool:
        """Whether the layer's heads have a learned logit beside their scores."""
        return self.pattern.of_layer(layer).has_sink

    @property
    def sink_layers(self) -> int:
        """How many layers have them."""
        return sum(count for pattern, count in self.layer_patterns.items() if pattern.has_sink)

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.n_kv_heads * self.head_dim

    @property
    def heads_per_group(self) -> int:
        """Query heads served by one key-value head."""
        return self.n_heads // self.n_kv_heads
