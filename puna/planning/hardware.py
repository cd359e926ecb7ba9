"""Common cards as data: memory, dense 16-bit tensor FLOP/s with float32 accumulation, memory and bus bandwidth.

A vendor's gigabyte is read as 10^9 bytes, a little below what most drivers report: the difference goes to the device's
own context. The figures are the vendor's published peaks, rounded, and have not been measured here; those of the GeForce
4060 and 3060 follow cores x boost clock. T4 has no bfloat16, its figure is float16. The bus is PCIe's nominal rate one
way, of generation 4 with 16 lanes unless another is given.
"""

from dataclasses import dataclass

__all__ = ["CARDS", "FLOAT32_SHARE", "UTILISATION", "Card", "compute_seconds", "decode_seconds"]

UTILISATION = 0.4
"""Share of the peak rate that is assumed; careful training programs reach 0.3 to 0.5."""

FLOAT32_SHARE = 0.5
"""Rate of float32 products, as TF32, over the 16-bit rate; T4, which has no TF32, is slower still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a plan needs to know of a device."""

    name: str
    memory_bytes: int
    flops_per_second: float
    bytes_per_second: float
    bus_bytes_per_second: float


def _card(name: str, gigabytes: int, teraflops: float, gigabytes_per_second: float, bus: float = 32) -> Card:
    return Card(
        name=name,
        memory_bytes=gigabytes * 10**9,
        flops_per_second=teraflops * 1e12,
        bytes_per_second=gigabytes_per_second * 1e9,
        bus_bytes_per_second=bus * 1e9,
    )


CARDS = (
    _card("RTX 4060", 8, 30.2, 272, 16),
    _card("RTX 3060", 12, 25.5, 360),
    _card("T4", 16, 65, 320, 16),
    _card("RTX 4080", 16, 97.5, 717),
    _card("RTX 3090", 24, 71, 936),
    _card("A10", 24, 125, 600),
    _card("RTX 4090", 24, 165.2, 1008),
    _card("RTX 5090", 32, 209.5, 1792, 64),
    _card("A100 40GB", 40, 312, 1555),
    _card("L40S", 48, 362, 864),
    _card("A100 80GB", 80, 312, 2039),
    _card("H100", 80, 989, 3350, 64),
    _card("H200", 141, 989, 4800, 64),
)


def compute_seconds(card: Card, flops: float) -> float:
    """Time of work that the card's arithmetic limits, at UTILISATION of its peak."""
    return flops / (card.flops_per_second * UTILISATION)


def decode_seconds(card: Card, weight_bytes: int, cache_bytes: int, batch: int) -> float:
    """Time of one generated token: each step reads all weights and the batch's whole cache once; peak bandwidth."""
    return (weight_bytes + cache_bytes) / card.bytes_per_second / batch
