"""PCA of the token table: fewer directions around its mean, what they save, what they cost, and what they lose."""

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.arch.presets import find_preset
from puna.compression.embeddings import FactoredTable, factor_table
from puna.errors import UsageError
from puna.model.embedding import FactoredEmbedding
from puna.planning.compute import forward_flops
from puna.report.axes import Axis
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value, curves
from puna.topics.words import Words

__all__ = ["TOPIC"]


@torch.no_grad()
def _show(subject: Subject, words: Words) -> Shown:
    rank, config = subject.sizes["r"], subject.config
    if rank > config.dim:
        raise UsageError(f"rank: expected at most the table's width, {config.dim}, got {rank}", "lower --rank")
    example = find_preset("llama-3-8b").config
    parts = {"llama_3_8b": _counts(example, [1024, 2048, _break_even(example)], words)}
    if subject.llama is None:
        if config != example or rank not in (1024, 2048):
            parts = {"counts": _counts(config, [rank, _break_even(config)], words)} | parts
        return Shown.of(**parts, pictures={})
    embedding = subject.llama.embed_tokens
    table_VD = embedding.dense_weight() if isinstance(embedding, FactoredEmbedding) else embedding.weight
    table = factor_table(table_VD, config.dim)
    ranks, every = sorted({rank, config.dim // 4, config.dim // 2, _break_even(config)}), range(config.dim + 1)
    x, y = Axis(label=words.numbers["directions"]), Axis(label=words.numbers["lost"], form="percent")
    chart = curves(x, y, every, {"": [table.loss(each) / table.loss(0) for each in every]})
    model = _of_a_table(subject, table_VD.double(), table, rank)
    return Shown.of(model=model, counts=_counts(config, ranks, words, table), **parts, pictures={"pca": chart})


def _break_even(config: ModelConfig) -> int:
    """The largest rank that still saves."""
    return config.vocab_size * config.dim // (config.vocab_size + config.dim)


def _counts(
    config: ModelConfig, ranks: list[int], words: Words, table: FactoredTable | None = None
) -> dict[str, Value]:
    """Parameters of the table and FLOPs of a token, dense and at each rank; of a table that is known, what is lost."""
    dense = config.vocab_size * config.dim
    rows: list[list[float]] = [[dense, 1.0, 0, forward_flops(config, seq=1).head]]
    for rank in ranks:
        with torch.device("meta"):
            made = FactoredEmbedding.empty(config.vocab_size, config.dim, rank)
        count, back = sum(part.numel() for part in made.parameters()), made.R.numel()
        rows.append([count, dense / count, 2 * back, 2 * (made.Z.numel() + back)])
    names = ["parameters", "times_smaller", "input_flops", "head_flops"]
    if table is not None:
        names.append("lost")
        rows = [[*row, table.loss(rank) / table.loss(0)] for row, rank in zip(rows, (config.dim, *ranks), strict=True)]
    columns = [words.numbers[name] for name in names]
    return {"by_rank": Grid(rows=[words.numbers["dense"], *map(str, ranks)], columns=columns, values=rows)}


def _of_a_table(subject: Subject, table_VD: Tensor, table: FactoredTable, rank: int) -> dict[str, Value]:
    """The laws at a rank, and what each token of the text loses of its vector."""
    whole, ids = table.loss(0), list(subject.ids)
    lost_V, off_mean_V, nothing_V = (_errors_by_hand(table_VD, table, each) for each in (rank, 0, table_VD.shape[1]))
    return {
        "eigenvalues": table.energy_D[:8].tolist(),
        "dropped_eigenvalues": table.loss(rank),
        "dropped_share": table.loss(rank) / whole,
        "error_difference": abs(float(lost_V.mean()) - table.loss(rank)) / whole,
        "full_rank_difference": float(nothing_V.mean()) / whole,
        "lost_by_token": Grid(
            rows=list(subject.pieces),
            columns=[f"k = {rank}"],
            values=[[share] for share in (lost_V / off_mean_V)[ids].tolist()],
        ),
    }


def _errors_by_hand(table_VD: Tensor, table: FactoredTable, rank: int) -> Tensor:
    """|e_v - mu - P z_v|^2 of every token, of so many directions."""
    rebuilt_VD = table.mean_D + table.Z_VK[:, :rank] @ table.R_KD[:rank]
    return (table_VD - rebuilt_VD).square().sum(1)


TOPIC = Topic(
    name="pca",
    formula=(
        "E ~ 1 mu^T + Z P^T,  Z = (E - 1 mu^T) P",
        "mean over v of |e_v - mu - P z_v|^2 = sum over i > k of lambda_i",
        "V k + k d + d < V d",
    ),
    symbols={"E": "V d", "mu": "d", "P": "d r", "Z": "V r", "lambda_i": "d"},
    show=_show,
    code=("puna/compression/embeddings.py", "factor_table"),
    test=("tests/compression/test_embeddings.py", "test_all_directions_are_the_table_and_even_weights_are_plain_pca"),
)
