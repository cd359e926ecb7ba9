"""A model whose q, k and v share a factor, and gate and up another, as tests need it."""

import torch

from puna.arch.modules import LINEARS, linear_path
from puna.model.linears.kind import dense_weight
from puna.model.llama import Llama
from puna.model.surgery import get_linear, replace_group

__all__ = ["fuse"]

GROUPS = (LINEARS[:3], LINEARS[4:6])


@torch.no_grad()
def fuse(model: Llama, rank: int = 5) -> Llama:
    """Replace, in place, both groups of every layer by the best low rank of their stacked weights. Returns the model."""
    for layer in range(model.config.n_layers):
        for group in GROUPS:
            paths = [linear_path(layer, name) for name in group]
            weights = [dense_weight(get_linear(model, path)) for path in paths]
            left, values, right = torch.linalg.svd(torch.cat(weights), full_matrices=False)
            parts = (left[:, :rank] * values[:rank]).split([len(weight) for weight in weights])
            *Us, V_Ri = (
                part.to(model.norm.weight).clone(memory_format=torch.contiguous_format)
                for part in (*parts, right[:rank])
            )
            replace_group(model, dict(zip(paths, Us, strict=True)), V_Ri)
    return model
