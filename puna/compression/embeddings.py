"""Tables of fewer directions: e_v ~ mu + z_v R, by PCA of the embedding's or the head's rows, (V, D) -> (V, K) and (K, D).

    min over Z, R of  sum_v p_v |(e_v - mu - z_v R) M^1/2|^2,   mu = sum_v p_v e_v

p: how often a token occurs; uniform: plain PCA. M: what an error in each direction costs. Of the input table H_0 = E[g g^T], g
the loss's gradient at what it gives; of the head C = E[h h^T], h what it reads: with p-weighted centring that is the Fisher
information of one context's softmax, diag(p) - p p^T, exactly. One pair for both tables (tied): M = H_0 + C. The
mean is added back on the input; at the head it moves all logits alike, which no softmax sees. With M = L L^T the directions
are the leading eigenvectors P of L^T K L, K = sum_v p_v (e_v - mu)^T (e_v - mu): R = P^T L^-1, Z = (E - mu) L P; the loss is
the sum of the dropped eigenvalues. Sources: docs/compression.md 2; Chen et al. 2018, arXiv:1806.06950.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from puna.compression.low_rank import damped_root, eigenpairs, stored_factor
from puna.compression.statistics import add_gram, differentiate, frozen, refuse_no_tokens
from puna.errors import BadData, UsageError, unknown_name
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.kind import dense_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import replace_tables

__all__ = [
    "FactoredTable",
    "TableMetric",
    "TableStatistics",
    "Tables",
    "check_tables",
    "collect_table_statistics",
    "factor_table",
    "factor_tables",
    "token_weights",
]

TableMetric = Literal["two-sided", "frequency", "plain"]
Tables = Literal["both", "input", "head"]

FLOOR = 0.1
"""The least weight of a token, in those of an even share 1 / V: what was not seen would be arbitrary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoredTable:
    """mu + Z R, float64. energy_D: what leaving out each direction costs, the dearest first."""

    Z_VK: Tensor
    R_KD: Tensor
    mean_D: Tensor
    energy_D: Tensor

    def loss(self, rank: int) -> float:
        """The weighted error of so many directions, squared."""
        return float(self.energy_D[rank:].flip(0).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatistics:
    """Of calibration tokens, float64: how often each occurs; the means of g g^T, g the loss's gradient at the input table's
    output, and of h h^T, h what the head reads.
    """

    counts_V: Tensor
    input_DD: Tensor
    hidden_DD: Tensor
    tokens: int


def collect_table_statistics(model: Llama, windows: Iterable[Tensor], seed: int = 0) -> TableStatistics:
    """One forward and backward pass over the windows; the loss is on labels that the model draws itself, by the seed.

    Args:   windows: ids_BT. Errors: BadData: no window at all, or what is summed is not finite.
    """
    device, dim = model.device, model.config.dim
    counts_V = torch.zeros(model.config.vocab_size, dtype=torch.float64, device=device)
    sums = {name: torch.zeros(dim, dim, dtype=torch.float64, device=device) for name in ("input", "hidden")}

    def add(name: str, x_BTD: Tensor) -> None:
        add_gram(sums[name], x_BTD.detach().flatten(0, -2))

    def see_input(_: nn.Module, __: Any, out_BTD: Tensor) -> None:
        if not out_BTD.requires_grad:
            out_BTD.requires_grad_()
        out_BTD.register_hook(lambda g_BTD: add("input", g_BTD))

    generator = torch.Generator(device).manual_seed(seed)
    hooks = (
        model.embed_tokens.register_forward_hook(see_input),
        model.norm.register_forward_hook(lambda _, __, out_BTD: add("hidden", out_BTD)),
    )
    try:
        with torch.enable_grad(), frozen(model):
            for ids_BT in windows:
                ids = ids_BT.to(device)
                counts_V += torch.bincount(ids.flatten(), minlength=len(counts_V))
                differentiate(model, ids, generator)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = int(counts_V.sum())
    refuse_no_tokens(tokens)
    if not all(total.isfinite().all() for total in sums.values()):
        raise BadData(
            "calibration: expected finite activations and gradients, got NaN or infinity", "check the weights"
        )
    means = {f"{name}_DD": total / tokens for name, total in sums.items()}
    return TableStatistics(counts_V=counts_V, tokens=tokens, **means)


@torch.no_grad()
def factor_tables(
    model: Llama,
    rank: int,
    statistics: TableStatistics | None = None,
    metric: TableMetric = "two-sided",
    tables: Tables = "both",
) -> dict[str, FactoredTable]:
    """Replace, in place, the input table, the head or both by tables of `rank` directions; a tied pair stays tied.

    Args:    statistics: needed by all metrics but `plain`.
    Returns: what was made, by `embed_tokens` and `lm_head`; of a tied pair the first alone.
    Errors:  UsageError, before anything has changed: a rank that saves nothing, one table of a tied pair, tables that are
             factored already.
    """
    config, like = model.config, model.embed_tokens.weight
    check_tables(model, rank, metric, tables)
    input_DD = hidden_DD = p_V = None
    if metric != "plain":
        assert statistics is not None, "what occurs is not known"
        p_V = token_weights(statistics.counts_V)
    if metric == "two-sided" and statistics is not None:
        input_DD, hidden_DD = statistics.input_DD, statistics.hidden_DD
    made: dict[str, FactoredTable] = {}
    if tables != "head":
        both_DD = (
            input_DD if input_DD is None or hidden_DD is None or not config.tied_embeddings else input_DD + hidden_DD
        )
        table = made["embed_tokens"] = factor_table(model.embed_tokens.weight, rank, p_V, both_DD)
        parts = (stored_factor(part, like) for part in (table.Z_VK, table.R_KD, table.mean_D))
        replace_tables(model, table=FactoredEmbedding(*parts))
    if tables != "input" and not config.tied_embeddings:
        table = made["lm_head"] = factor_table(dense_weight(model.lm_head), rank, p_V, hidden_DD)
        replace_tables(model, head=LowRankLinear(stored_factor(table.Z_VK, like), stored_factor(table.R_KD, like)))
    return made


def check_tables(model: Llama, rank: int, metric: str, tables: str) -> None:
    """Whether `factor_tables` can do this. Errors: UsageError, as there."""
    config = model.config
    for name, value, known in (("metric", metric, get_args(TableMetric)), ("tables", tables, get_args(Tables))):
        if value not in known:
            raise unknown_name(name, value, known)
    if isinstance(model.embed_tokens, FactoredEmbedding) or not isinstance(model.lm_head, nn.Linear):
        raise UsageError("embedding rank: the tables are factored already", "compress the model that it was made from")
    if config.tied_embeddings and tables != "both":
        raise UsageError(
            f"embedding tables: expected both, got {tables}: the head is the input table",
            "leave out --embedding-tables",
        )
    limit = config.vocab_size * config.dim // (config.vocab_size + config.dim)
    if not 1 <= rank <= limit:
        raise UsageError(
            f"embedding rank: expected 1 to {limit}, beyond which nothing is saved, got {rank}",
            "half of it is a beginning",
        )


def token_weights(counts_V: Tensor) -> Tensor:
    """p_V from how often each token occurs, none below a tenth of an even share; sums to 1.

    Errors: BadData: no token at all.
    """
    counts = counts_V.double()
    if counts.sum() <= 0:
        raise BadData("frequencies: expected at least one token, got none", "give more calibration text")
    p_V = (counts / counts.sum()).clamp(min=FLOOR / len(counts))
    return p_V / p_V.sum()


@torch.no_grad()
def factor_table(
    table_VD: Tensor, rank: int, weights_V: Tensor | None = None, metric_DD: Tensor | None = None
) -> FactoredTable:
    """The best table of `rank` directions around its mean.

    Args:   weights_V: p, summing to 1; None: an even share. metric_DD: M; None: the identity.
    Errors: UsageError: a rank outside 1..D.
    """
    vocabulary, width = table_VD.shape
    if not 1 <= rank <= width:
        raise UsageError(f"embedding rank: expected 1 to {width}, got {rank}", "half the width is a beginning")
    table = table_VD.double()
    p_V = torch.full((vocabulary,), 1 / vocabulary).to(table) if weights_V is None else weights_V.double()
    mean_D = p_V @ table
    second_DD = (p_V[:, None] * table).T @ table - torch.outer(mean_D, mean_D)
    L = torch.eye(width).to(table) if metric_DD is None else damped_root(metric_DD)
    energy_D, P_DK = eigenpairs(L.T @ second_DD @ L, rank)
    return FactoredTable(
        Z_VK=(table - mean_D) @ (L @ P_DK),
        R_KD=torch.linalg.solve_triangular(L.T, P_DK, upper=True).T,
        mean_D=mean_D,
        energy_D=energy_D,
    )
