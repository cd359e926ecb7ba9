"""Healing: what was factorised learns, from calibration text, to predict what the dense model predicts.

    loss = mean over tokens of KL(dense || factorised);   learned: U and V alone

Nothing stored grows and nothing else moves: norms, table, head and matrices that stayed dense are those of the dense
model, in memory too. Where nothing was factorised, and heads became fewer, everything learns, beside a copy of the dense
model. Sources: Hinton et al. 2015, arXiv:1503.02531; docs/compression.md 1.7.
"""

import copy

import torch

from puna.model.batch import Batch
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.loss import Nats, chunked_kl
from puna.model.surgery import named_linears

__all__ = ["Distillation", "shared_copy", "teacher", "train_everything", "train_factors"]


class Distillation:
    """The loss of a batch against a dense model, over the whole vocabulary."""

    def __init__(self, dense: Llama) -> None:
        self._dense = dense

    def __call__(self, model: Llama, batch: Batch) -> Nats:
        """Differentiable KL(dense || model) of the kept tokens."""
        rows = batch.ids_BT, batch.positions_BT, batch.documents_BT
        with torch.no_grad():
            reference_BTD = self._dense.hidden(*rows)
        return chunked_kl(model.lm_head, model.hidden(*rows), self._dense.lm_head, reference_BTD, batch.keep_BT)


def shared_copy(model: Llama) -> Llama:
    """A model of its own whose tensors are the first one's: a Linear replaced in one stays in the other."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def train_factors(model: Llama) -> int:
    """Let the low-rank factors learn, the tables' among them, and nothing else; return how many numbers that is."""
    model.requires_grad_(requires_grad=False)
    for module in (model.embed_tokens, model.lm_head, *(linear for _, linear in named_linears(model))):
        if isinstance(module, LowRankLinear | FactoredEmbedding):
            module.requires_grad_(requires_grad=True)
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def teacher(model: Llama, *, everything_learns: bool) -> Llama:
    """The model as it is now, which stays so while the first one is changed and learns."""
    return copy.deepcopy(model) if everything_learns else shared_copy(model)


def train_everything(model: Llama) -> int:
    """Let every weight learn; return how many numbers that is."""
    model.requires_grad_(requires_grad=True)
    return sum(weight.numel() for weight in model.parameters())
