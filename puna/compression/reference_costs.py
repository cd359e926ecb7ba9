"""What a unit of each matrix's own loss is worth in the model's: measured where one matrix alone is cut.

    c_l = KL(model || model with l cut to rank r0) / tail_l(r0),  in nats a token for each unit of loss

Decompositions of different matrices count in units of their own; times c_l they predict what was measured at r0, and
can be weighed against one another. docs/compression.md 1.5.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from puna.compression.groups import group_members
from puna.compression.low_rank import Spectrum, compress_low_rank
from puna.compression.statistics import refuse_no_tokens
from puna.model.linears.kind import AnyLinear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, replace_linear

__all__ = ["reference_costs"]

_CHUNK_TOKENS = 256  # two sets of logits at a time


@torch.no_grad()
def reference_costs(
    model: Llama, spectra: Mapping[str, Spectrum], windows: Sequence[Tensor], ranks: Mapping[str, int]
) -> dict[str, float]:
    """c_l by the name of each spectrum that has a rank; the model is left as it was.

    Args:   spectra: by a Linear's path or a group's name. windows: ids_BT, a few of the calibration's.
            ranks: r0 by name. A matrix that loses nothing at r0 costs 0.
    Errors: BadData: no window of tokens.
    """
    tokens = sum(ids_BT.numel() for ids_BT in windows)
    refuse_no_tokens(tokens)
    windows = [ids_BT.to(model.embed_tokens.weight.device) for ids_BT in windows]
    dense = [model.hidden(ids_BT) for ids_BT in windows]
    costs = {}
    for name, rank in ranks.items():
        tail = spectra[name].loss(rank)
        kept = {path: get_linear(model, path) for path in group_members(name)}
        compress_low_rank(model, [(name, spectra[name])], {name: rank})
        try:
            pairs = zip(dense, (model.hidden(ids_BT) for ids_BT in windows), strict=True)
            nats = sum(_summed_kl(model.lm_head, *pair) for pair in pairs)
        finally:
            for path, linear in kept.items():
                replace_linear(model, path, linear)
        costs[name] = max(0.0, nats) / tokens / tail if tail > 0 else 0.0
    return costs


def _summed_kl(head: AnyLinear, first_BTD: Tensor, second_BTD: Tensor) -> float:
    """KL(first || second) in nats, summed over tokens."""
    return sum(float(part) for part in _kl_parts(head, first_BTD.flatten(0, -2), second_BTD.flatten(0, -2)))


def _kl_parts(head: AnyLinear, first_ND: Tensor, second_ND: Tensor) -> Iterator[Tensor]:
    for first, second in zip(first_ND.split(_CHUNK_TOKENS), second_ND.split(_CHUNK_TOKENS), strict=True):
        p_CV, q_CV = (head(rows).double().log_softmax(-1) for rows in (first, second))
        yield (p_CV.exp() * (p_CV - q_CV)).sum()
