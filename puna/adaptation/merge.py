"""Fold an adapter into its base: W' = W + s B A (and a DoRA's row lengths), formed in float32, one module at a time.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

from dataclasses import replace

import torch
from torch import nn

from puna.adaptation.targets import named_loras
from puna.arch.modules import EMBEDDING, HEAD
from puna.model.linears.kind import dense_linear
from puna.model.linears.lora import LoraEmbedding
from puna.model.llama import Llama
from puna.model.surgery import replace_linear

__all__ = ["merge"]


@torch.no_grad()
def merge(model: Llama) -> bool:
    """Replace every adapter by the dense module that computes the same, in the model's type; all weights can train again.

    A base of low rank or int8 becomes dense too. Returns: whether the head was tied to the embedding and is no longer:
    an adapter beside one of the two changes that one alone.
    """
    dtype, adapted = model.embed_tokens.weight.dtype, dict(named_loras(model))
    for path, lora in adapted.items():
        if isinstance(lora, LoraEmbedding):
            setattr(model, path, nn.Embedding.from_pretrained(lora.dense_weight().to(dtype), freeze=False))
        else:
            replace_linear(model, path, dense_linear(lora.dense_weight().to(dtype)))
    unties = model.config.tied_embeddings and not adapted.keys().isdisjoint((EMBEDDING, HEAD))
    if unties:
        model.config = replace(model.config, tied_embeddings=False)
    model.requires_grad_(requires_grad=True)
    return unties
