"""What a product's way back needs of its input, where the input need not be kept: how to form it again.

    dW = dy^T x:   x = norm(h) is formed of h and the gain,   x = silu(g) u of g and u

Those are kept anyway, by the node that made x. The same function forms x both times, so gradients are the same to the bit.
Source: Chen et al. 2016, arXiv:1604.06174, for cheap functions alone. Figures: docs/findings.md 30.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Derived", "derived", "value_of"]


@dataclass(frozen=True, slots=True)
class Derived:
    """A tensor of the graph that equals form(*sources); without sources it is kept itself."""

    value: Tensor
    sources: tuple[Tensor, ...]
    form: Callable[..., Tensor]


def derived(x: Tensor | Derived) -> Derived:
    """Any input as what a product's node takes."""
    return x if isinstance(x, Derived) else Derived(x, (), _itself)


def value_of(x: Tensor | Derived) -> Tensor:
    """Any input as what a module takes."""
    return x.value if isinstance(x, Derived) else x


def _itself(x: Tensor) -> Tensor:
    return x
