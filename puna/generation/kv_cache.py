"""KVCache: the keys and values of the tokens so far, so that a new token costs one step and not a whole pass.

    bytes = 2 L G E n B c    (keys and values, layers, kv heads, head width, tokens, sequences, bytes per number)

Kept by key-value head, (G, n, E) in each layer, never repeated for the query heads that share one: against multi-head
attention the cache shrinks by H / G. Source: Ainslie et al. 2023, arXiv:2305.13245.
"""

import torch
from torch import Tensor

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
        shape = (config.n_layers, batch, config.n_kv_heads, capacity, config.head_dim)
        keys_LBGNE = torch.empty(shape, dtype=dtype, device=device)
        values_LBGNE = torch.empty_like(keys_LBGNE)
        self.capacity = capacity
        self.length = 0
        self.bytes = keys_LBGNE.nbytes + values_LBGNE.nbytes
        self._layers = list(zip(keys_LBGNE, values_LBGNE, strict=True))

    def extend(self, layer: int, k_BGTE: Tensor, v_BGTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all stored ones, k_BGSE and v_BGSE, as views."""
        tokens = k_BGTE.shape[2]
        end = self.length + tokens
        assert end <= self.capacity, f"a cache for {self.capacity} tokens was given {end}"
        k_BGNE, v_BGNE = self._layers[layer]
        k_BGNE.narrow(2, self.length, tokens).copy_(k_BGTE)
        v_BGNE.narrow(2, self.length, tokens).copy_(v_BGTE)
        return k_BGNE.narrow(2, 0, end), v_BGNE.narrow(2, 0, end)

    def advance(self, tokens: int) -> None:
        """Count the tokens that every layer has now stored."""
        self.length += tokens
