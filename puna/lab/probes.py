"""What is measured of a trained model beside its loss: a probe takes the model and held-out batches and gives named numbers.

Numbers of each layer are lists; their means over layers stand beside them.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean, median

import torch
from torch import Tensor

from puna.adaptation.targets import relative_update as size_of_update
from puna.model.attention import Attend
from puna.model.batch import Batch
from puna.model.feed_forward import FeedForward
from puna.model.linears.derived import Derived, value_of
from puna.model.llama import Llama
from puna.model.loss import token_nats
from puna.model.visibility import attention_mask, ways_to_attend
from puna.model.walk import look_inside, walk
from puna.training.step import batch_nats

__all__ = [
    "Measures",
    "Probe",
    "attention_milliseconds",
    "dead_units",
    "gradient_norms",
    "nats_by_length",
    "norm_microseconds",
    "relative_update",
    "score_statistics",
]

Measures = dict[str, float | list[float]]
Probe = Callable[[Llama, Sequence[Batch]], Measures]

_DEAD_SLOPE = 1e-3
_TIMED, _WARM = 15, 3
_LENGTHS = (512, 1024, 2048, 4096)
_HEADS, _HEAD_DIM = 4, 32


def gradient_norms(model: Llama, batches: Sequence[Batch]) -> Measures:
    """The norm of the loss's gradient in each layer's parameters, and the last layer's over the first's."""
    model.train().zero_grad(set_to_none=True)
    nats = batch_nats(model, batches[0].to(model.device))
    (nats.sum / nats.count).backward()
    norms = []
    for block in model.layers:
        gradients = (weight.grad for weight in block.parameters())
        norms.append(math.sqrt(math.fsum(float(each.square().sum()) for each in gradients if each is not None)))
    model.zero_grad(set_to_none=True)
    return {"gradient_norm_by_layer": norms, "gradient_last_over_first": norms[-1] / max(norms[0], 1e-30)}


@torch.no_grad()
def score_statistics(model: Llama, batches: Sequence[Batch]) -> Measures:
    """Variance of the scores that a query sees, and the entropy of its weights as a share of the largest it could have."""
    variances, entropies = list[float](), list[float]()
    for layer, stage in enumerate(walk(model.eval(), batches[0].ids_BT)):
        view = look_inside(stage)
        variance, entropy = _score_statistics(
            model, view.q_BHTE, view.k_BGSE, _visible(model, layer, view.q_BHTE.shape[2])
        )
        variances.append(variance)
        entropies.append(entropy)
    return {
        "score_variance_by_layer": variances,
        "score_variance": fmean(variances),
        "attention_entropy_by_layer": entropies,
        "attention_entropy": fmean(entropies),
    }


@torch.no_grad()
def dead_units(model: Llama, batches: Sequence[Batch]) -> Measures:
    """The share of feed-forward units whose function has a slope below 0.001 at every token of a batch: none learns there."""
    shares = []
    for stage in walk(model.eval(), batches[0].ids_BT):
        block, inputs = stage.block, list[Tensor | Derived]()
        hook = block.mlp.register_forward_pre_hook(lambda _, given, kept=inputs: kept.append(given[0]))
        stage.run()
        hook.remove()
        linear = block.mlp.gate_proj if isinstance(block.mlp, FeedForward) else block.mlp.up_proj
        before_NF = linear(value_of(inputs[0])).flatten(0, -2)
        slopes_NF = block.mlp.activation.pull(torch.ones_like(before_NF), before_NF).abs()
        shares.append(float((slopes_NF.amax(0) < _DEAD_SLOPE).float().mean()))
    return {"dead_units_by_layer": shares, "dead_units": fmean(shares)}


def norm_microseconds(model: Llama, batches: Sequence[Batch]) -> Measures:
    """One norm forward and backward, for 1,024 tokens, the middle of 15, less the same sum without it."""
    norm = getattr(model.train().layers[0], model.config.norm_names[0])
    x_BTD = torch.randn(
        *batches[0].ids_BT.shape, model.config.dim, device=model.device, dtype=model.dtype, requires_grad=True
    )
    alone = _seconds(lambda: x_BTD.sum().backward())
    seconds = max(0.0, _seconds(lambda: norm(x_BTD).sum().backward()) - alone)
    return {"norm_microseconds": 1e6 * seconds * 1024 / batches[0].ids_BT.numel()}


def relative_update(model: Llama, _batches: Sequence[Batch]) -> Measures:
    """|dW| / |W| of all that an adapter stands beside."""
    return {"relative_update": size_of_update(model)}


def nats_by_length(*lengths: int) -> Probe:
    """Mean nats of the tokens between one length and the next; the first is that of training.

    Windows are as long as the last of them, of the batches' rows joined: one row goes on where the last one ended.
    """

    @torch.no_grad()
    def probe(model: Llama, batches: Sequence[Batch]) -> Measures:
        longest = min(lengths[-1], model.config.max_seq_len)
        ids, targets = (torch.cat(rows).to(model.device) for rows in zip(*map(_rows, batches), strict=True))
        whole = len(ids) // longest * longest
        if whole == 0:
            return {}
        nats_BT = torch.cat([
            token_nats(model.lm_head, model.eval().hidden(row[None]), target[None])
            for row, target in zip(ids[:whole].split(longest), targets[:whole].split(longest), strict=True)
        ])  # fmt: skip
        edges = (0, *(length for length in lengths if length <= longest))
        return {f"nats_to_{end}": float(nats_BT[:, start:end].mean()) for start, end in pairwise(edges)}

    return probe


def attention_milliseconds(model: Llama, _batches: Sequence[Batch]) -> Measures:
    """The first layer's attention alone, forward and backward, 4 heads of 32, at 512 to 4,096 tokens, the middle of 15."""
    found: Measures = {}
    for tokens in _LENGTHS:
        q, k, v = (torch.randn(1, _HEADS, tokens, _HEAD_DIM, device=model.device, requires_grad=True) for _ in range(3))
        attend = ways_to_attend(model.config, tokens, None, None, q.device, q.dtype)[0]
        found[f"attention_milliseconds_{tokens}"] = 1e3 * _seconds(partial(_attend_there_and_back, attend, q, k, v))
    return found


def _attend_there_and_back(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> None:
    attend(q, k, v, None).sum().backward()


def _visible(model: Llama, layer: int, tokens: int) -> Tensor:
    index_T = torch.arange(tokens, device=model.device)
    return attention_mask(model.config.pattern.of_layer(layer), model.config.n_heads, index_T, index_T)


def _score_statistics(model: Llama, q_BHTE: Tensor, k_BGSE: Tensor, seen_1HTS: Tensor) -> tuple[float, float]:
    k_BHSE = k_BGSE.repeat_interleave(model.config.heads_per_group, dim=1)
    scores_BHTS = (q_BHTE @ k_BHSE.transpose(-1, -2) * model.config.score_factor).double()
    many = seen_1HTS.sum(-1, keepdim=True)
    mean = scores_BHTS.where(seen_1HTS, 0.0).sum(-1, keepdim=True) / many
    variance = (scores_BHTS - mean).square().where(seen_1HTS, 0.0).sum(-1) / many[..., 0]
    weights = scores_BHTS.masked_fill(~seen_1HTS, -math.inf).softmax(-1)
    entropy = torch.special.entr(weights).sum(-1)
    is_many = (many[..., 0] > 1).expand_as(entropy)
    most = many[..., 0].double().log().expand_as(entropy)
    return float(variance[is_many].mean()), float((entropy[is_many] / most[is_many]).mean())


def _rows(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.ids_BT.flatten(), batch.targets_BT.flatten()


def _seconds(call: Callable[[], object]) -> float:
    """The middle of several calls, after a few to warm up."""
    times = []
    for _ in range(_WARM + _TIMED):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[_WARM:])
