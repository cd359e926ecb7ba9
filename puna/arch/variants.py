"""The parts that a study may exchange, by name; the first of each is the real Llama's.

Sources: LayerNorm arXiv:1607.06450, BatchNorm arXiv:1502.03167, RMSNorm arXiv:1910.07467; post-norm and sinusoidal positions
arXiv:1706.03762, pre-norm arXiv:2002.04745, RoPE arXiv:2104.09864; GLU variants arXiv:2002.05202.
"""

from typing import Literal

__all__ = [
    "FEED_FORWARDS",
    "GATED",
    "NORM_VECTORS",
    "FeedForwardKind",
    "NormKind",
    "Placement",
    "PositionKind",
    "ScoreScale",
    "matched_ffn_dim",
]

NormKind = Literal["rms", "layer", "batch", "none"]
Placement = Literal["pre", "post"]
PositionKind = Literal["rope", "sinusoidal", "learned", "none"]
FeedForwardKind = Literal["swiglu", "geglu", "glu", "relu", "swish", "gelu"]
ScoreScale = Literal["1/sqrt", "1", "1/d"]
"""What q k^T is multiplied by: 1 / sqrt(E), nothing, or 1 / E."""

GATED = {"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid"}
"""Gated feed-forward networks, and what Hugging Face calls the function of their gate: LlamaForCausalLM computes these."""

FEED_FORWARDS = {**GATED, "relu": "relu", "swish": "silu", "gelu": "gelu"}
"""Every kind, and its function."""

NORM_VECTORS = {
    "rms": ("weight",),
    "layer": ("weight", "bias"),
    "batch": ("weight", "bias", "running_mean", "running_var"),
    "none": (),
}
"""What a norm of each kind stores, each of the model's width; BatchNorm's last two are measured, not learned."""


def matched_ffn_dim(gated_ffn_dim: int) -> int:
    """The width at which two matrices hold as many numbers as three of the given width (an even one: exactly)."""
    return 3 * gated_ffn_dim // 2
