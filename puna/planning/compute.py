"""Floating-point operations, counted exactly; one multiplication and one addition are 2.

    a Linear: 2 n d_in d_out     attention of a layer: 4 pairs h d_h, for q k^T and for P v
    training: 3 x forward; + 1 x the layers when they are recomputed; frozen weights need no gradient: 2 x forward

Norms, rotations, softmax and activations are not counted: below 1 % of a Llama's work. Source: docs/math.md section 3.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from puna.arch.config import ModelConfig
from puna.arch.modules import EMBEDDING, LINEARS, linear_shapes
from puna.planning.counting import attended_pairs, target_shapes
from puna.planning.settings import FullTraining, Inference, LoraTraining, Settings

__all__ = ["ForwardFlops", "forward_flops", "planned_flops", "training_flops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardFlops:
    """FLOPs of a forward pass by part: `linears` by name over all layers, the head, and attention over all layers."""

    linears: dict[str, int]
    head: int
    attention: int

    @property
    def layers(self) -> int:
        """All but the head."""
        return sum(self.linears.values()) + self.attention

    @property
    def total(self) -> int:
        """Everything counted."""
        return self.layers + self.head


def forward_flops(config: ModelConfig, seq: int, batch: int = 1, *, full_square: bool = False) -> ForwardFlops:
    """FLOPs of reading `batch` sequences of `seq` tokens.

    Args: full_square: attention as kernels without a causal skip compute it, every query with every key; else only the
          pairs that the model's pattern makes visible.
    """
    pairs = config.n_layers * config.n_heads * seq * seq if full_square else attended_pairs(config, seq)
    per_weight = 2 * batch * seq
    return ForwardFlops(
        linears={name: per_weight * config.n_layers * prod(shape) for name, shape in linear_shapes(config).items()},
        head=per_weight * config.dim * config.vocab_size,
        attention=4 * batch * pairs * config.head_dim,
    )


def planned_flops(config: ModelConfig, settings: Settings) -> ForwardFlops:
    """FLOPs of reading the batch with what the model holds: a compressed one's factors, or what its base makes of them."""
    forward = forward_flops(config, settings.seq, settings.batch)
    if (smaller := settings.compressed) is None:
        return forward
    per_weight = 2 * settings.tokens
    linears = {name: per_weight * numbers for name, numbers in smaller.products.items()}
    head = per_weight * smaller.head_products
    return replace(forward, linears=forward.linears if settings.rounds_anew else linears, head=head)


def training_flops(config: ModelConfig, settings: Settings) -> int:
    """FLOPs of one forward and backward pass over the batch; of the forward pass alone where nothing is trained.

    LoRA: the frozen weights cost a product forward and one for the input's gradient, the adapter's factors three.
    Recomputing the layers (checkpointing) repeats their forward pass; the head and the loss are not repeated.
    """
    forward = planned_flops(config, settings)
    method = settings.method
    if isinstance(method, Inference):
        return forward.total
    recomputed = forward.layers if settings.checkpointing else 0
    if isinstance(method, FullTraining):
        return 3 * forward.total + recomputed
    everywhere = _adapter_flops(config, method, settings.tokens, method.targets)
    in_layers = _adapter_flops(config, method, settings.tokens, [name for name in method.targets if name in LINEARS])
    recomputed += sum(in_layers) if settings.checkpointing else 0
    trained, frozen, fixed = everywhere
    frozen += forward.total - forward.attention
    return 3 * (trained + forward.attention) + 2 * frozen + fixed + recomputed


def _adapter_flops(
    config: ModelConfig, method: LoraTraining, tokens: int, targets: Iterable[str]
) -> tuple[int, int, int]:
    """One pass forward: of the trained factors, of the frozen ones that they began as, of a DoRA's row lengths.

    Of the embedding's A a row is taken; the lengths (W A^T, A A^T, B A A^T) cost the same whatever the tokens.
    """
    shapes, products, lengths = target_shapes(config), 0, 0
    for name in targets:
        (d_out, d_in), rank = shapes[name], method.rank_of(name)
        layers = config.n_layers if name in LINEARS else 1
        products += 2 * tokens * layers * rank * (d_out if name == EMBEDDING else d_in + d_out)
        lengths += 2 * layers * rank * (d_out * d_in + rank * (d_in + d_out))
    return products, products if method.starts else 0, lengths if method.magnitudes else 0
