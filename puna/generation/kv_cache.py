"""KVCache: the keys and values of the tokens so far, so that a new token costs one step and not a whole pass.

    bytes = 2 L G E n B c    (keys and values, layers, kv heads, head width, tokens, sequences, bytes per number)

Kept by key-value head, (G, n, E) in each layer, never repeated for the query heads that share one: against multi-head
attention the cache shrinks by H / G. A layer that sees no further back than a window w and s sinks keeps only those, in a
ring: token p >= s stands at s + (p - s) mod w, and n becomes min(n, w + s).
Source: Ainslie et al. 2023, arXiv:2305.13245; Xiao et al. 2023, arXiv:2309.17453.
"""

import torch
from torch import Tensor

from puna.arch.attention_pattern import LayerPattern, SlidingWindow
from puna.arch.config import ModelConfig

__all__ = ["KVCache"]


class KVCache:
    """A KeyValueStore (model/attention.py) for `batch` sequences of equal length, allocated once for `capacity` tokens."""

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        *,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.capacity = capacity
        self.length = 0
        self._layers = [
            _Layer(config.pattern.of_layer(layer), (batch, config.n_kv_heads, capacity, config.head_dim), dtype, device)
            for layer in range(config.n_layers)
        ]
        self.bytes = sum(layer.k_BGNE.nbytes + layer.v_BGNE.nbytes for layer in self._layers)

    def positions(self, layer: int, tokens: int) -> Tensor:
        """positions_S of what `extend` will return for so many new tokens, in its order."""
        return self._layers[layer].positions(self.length, tokens)

    def extend(self, layer: int, k_BGTE: Tensor, v_BGTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all that are kept and the new ones, k_BGSE and v_BGSE, mostly as views."""
        end = self.length + k_BGTE.shape[2]
        assert end <= self.capacity, f"a cache for {self.capacity} tokens was given {end}"
        return self._layers[layer].extend(self.length, k_BGTE, v_BGTE)

    def advance(self, tokens: int) -> None:
        """Count the tokens that every layer has now stored."""
        self.length += tokens


class _Layer:
    """What one layer keeps: everything, or sinks and a ring of the latest."""

    def __init__(
        self, pattern: LayerPattern, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | None
    ) -> None:
        batch, heads, capacity, width = shape
        self.sinks = pattern.sinks if isinstance(pattern, SlidingWindow) else 0
        self.kept = pattern.kept(capacity)
        self.k_BGNE = torch.empty((batch, heads, self.kept, width), dtype=dtype, device=device)
        self.v_BGNE = torch.empty_like(self.k_BGNE)

    def positions(self, length: int, tokens: int) -> Tensor:
        """As KVCache.positions."""
        if tokens == 1 and length >= self.kept:
            length, tokens = length + 1, 0  # the new one has taken the oldest one's place
        slots_S = torch.arange(min(length, self.kept))
        ring = max(1, self.kept - self.sinks)
        turns_S = (length - 1 - slots_S).clamp(min=0) // ring * ring
        earlier_S = slots_S + turns_S * (slots_S >= self.sinks)
        return torch.cat((earlier_S, torch.arange(length, length + tokens)))

    def extend(self, length: int, k_BGTE: Tensor, v_BGTE: Tensor) -> tuple[Tensor, Tensor]:
        """As KVCache.extend."""
        tokens = k_BGTE.shape[2]
        end = length + tokens
        if tokens > 1 and end > self.kept:  # some of the kept ones go, though the first new tokens may still see them
            before = (each.narrow(2, 0, min(length, self.kept)) for each in (self.k_BGNE, self.v_BGNE))
            k_BGSE, v_BGSE = (torch.cat(each, dim=2) for each in zip(before, (k_BGTE, v_BGTE), strict=True))
            self._store(length, k_BGTE, v_BGTE)
            return k_BGSE, v_BGSE
        at = length if end <= self.kept else self._slot(length)
        for kept_BGNE, new_BGTE in ((self.k_BGNE, k_BGTE), (self.v_BGNE, v_BGTE)):
            kept_BGNE.narrow(2, at, tokens).copy_(new_BGTE)
        return self.k_BGNE.narrow(2, 0, min(end, self.kept)), self.v_BGNE.narrow(2, 0, min(end, self.kept))

    def _store(self, length: int, k_BGTE: Tensor, v_BGTE: Tensor) -> None:
        """Of many new tokens the sinks among them and the latest."""
        end = length + k_BGTE.shape[2]
        latest = max(length, self.sinks, end - (self.kept - self.sinks))
        lasting = [*range(length, min(end, self.sinks)), *range(latest, end)]
        slots, new = torch.tensor([self._slot(p) for p in lasting]), torch.tensor([p - length for p in lasting])
        for kept_BGNE, new_BGTE in ((self.k_BGNE, k_BGTE), (self.v_BGNE, v_BGTE)):
            kept_BGNE[:, :, slots.to(kept_BGNE.device)] = new_BGTE[:, :, new.to(kept_BGNE.device)].to(kept_BGNE.dtype)

    def _slot(self, position: int) -> int:
        """Where a token stands."""
        return position if position < self.sinks else self.sinks + (position - self.sinks) % (self.kept - self.sinks)
