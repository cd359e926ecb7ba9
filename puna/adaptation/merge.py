"""Fold an adapter into its base: W' = W + (alpha / rank) B A, formed in float32, one Linear at a time.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

import torch
from torch import nn

from puna.adaptation.targets import named_loras
from puna.model.linears.lora import LoraLinear
from puna.model.llama import Llama
from puna.model.surgery import replace_linear

__all__ = ["merge"]


@torch.no_grad()
def merge(model: Llama) -> None:
    """Replace every LoraLinear by the dense Linear that computes the same, in the model's type; all weights can train
    again. A base of low rank or int8 becomes dense too.
    """
    for path, lora in list(named_loras(model)):
        replace_linear(model, path, _dense(lora, model.embed_tokens.weight.dtype))
    model.requires_grad_(requires_grad=True)


def _dense(lora: LoraLinear, dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(lora.in_features, lora.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(lora.dense_weight().to(dtype))
    return linear
