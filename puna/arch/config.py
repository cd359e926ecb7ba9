"""ModelConfig: the numbers a model's weights depend on, checked once, at construction."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from puna.arch.attention_pattern import AttentionPattern, Causal, LayerPattern
from puna.arch.rope_scaling import NoScaling, RopeScaling
from puna.errors import UsageError

__all__ = ["ModelConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Llama: pre-norm RMSNorm, RoPE, grouped-query attention, SwiGLU, no bias. Any pattern but the causal one is a variant for
    study, which other programs do not read as a Llama.

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

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type is int and value < 1:
                raise UsageError(
                    f"model.{item.name}: expected at least 1, got {value}", "every size is a positive whole number"
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
        if self.head_dim % 2:
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
        """What makes this something else than a plain Llama, in words."""
        return () if isinstance(self.pattern, Causal) else (f"attention of kind {self.pattern.kind}",)

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
