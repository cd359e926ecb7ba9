"""Starting weights: normal with standard deviation 0.02, smaller where a layer adds to the residual stream.

Factors U and V of rank R start at sqrt(s / sqrt(R)), so that their product starts at the s of the weight it stands for.

The two projections that write to the stream (o_proj, down_proj) start at 0.02 / sqrt(2 L), so that the stream's
variance does not grow with depth. Source: Radford et al. 2019 (GPT-2), section 2.3.
"""

import math

import torch
from torch import nn

from puna.model.llama import Llama

__all__ = ["initialise"]

STD = 0.02
_RESIDUAL = ("o_proj", "down_proj")


@torch.no_grad()
def initialise(model: Llama, seed: int) -> Llama:
    """Fill every weight from one seeded generator, in order of their names; norms start at 1, biases and sinks at 0.

    Returns: the model.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_std = STD / math.sqrt(2 * model.config.n_layers)
    for name, weight in sorted(model.named_parameters()):
        if weight.dim() == 1:
            nn.init.constant_(weight, 0.0 if name.endswith(("sinks.weight", "bias")) else 1.0)
            continue
        path, _, kind = name.rpartition(".")
        std = residual_std if path.endswith(_RESIDUAL) else STD
        if kind in ("U", "V"):
            std = math.sqrt(std / math.sqrt(weight.shape[1 if kind == "U" else 0]))
        weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator))
    return model
