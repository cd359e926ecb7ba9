"""Embedding: a token's id picks its row of a table, and that row is the vector that the model computes with."""

from dataclasses import replace

import torch
from torch import Tensor

from puna.arch.config import ModelConfig
from puna.arch.modules import parameter_count
from puna.model.llama import Llama
from puna.planning.counting import embedding_parameters
from puna.tokens.tokenizer import Tokenizer
from puna.topics.subject import Subject
from puna.topics.topic import Grid, Shown, Topic, Value
from puna.topics.words import Words

__all__ = ["TOPIC"]

_IDS = (1, 2, 3, 4)  # the notes'
_NEIGHBOURS, _NUMBERS = 3, 4  # shown of each token


def _show(subject: Subject, words: Words) -> Shown:
    numbers = _counts(subject.config, tokens=len(subject.ids))
    if subject.llama is not None and subject.tokenizer is not None:
        numbers |= _inside(subject, subject.llama, subject.tokenizer, words)
    return Shown.of(model=numbers, example=_example())


def _counts(config: ModelConfig, tokens: int) -> dict[str, Value]:
    return {
        "table_parameters": embedding_parameters(config),
        "table_share": embedding_parameters(config) / parameter_count(config),
        "gather_flops": 0,
        "one_hot_flops": 2 * tokens * config.vocab_size * config.dim,
    }


@torch.no_grad()
def _inside(subject: Subject, llama: Llama, tokenizer: Tokenizer, words: Words) -> dict[str, Value]:
    """Each token's vector, and whose vectors point the same way."""
    table_VD = llama.embed_tokens(torch.arange(subject.config.vocab_size)).float()  # dense, whatever kind stands there
    x_TD = llama.embed_tokens(subject.ids_BT)[0].float()
    cosines_TV = _cosines_by_hand(x_TD, table_VD[: tokenizer.vocab_size])
    cosines_TV[torch.arange(len(x_TD)), list(subject.ids)] = -torch.inf  # each is nearest to itself
    best = cosines_TV.topk(_NEIGHBOURS)
    names = [replace(subject, ids=ids).pieces for ids in best.indices.tolist()]
    rows = [f"{place} {piece}" for place, piece in enumerate(subject.pieces)]
    norms = torch.linalg.vector_norm(x_TD, dim=-1).tolist()
    vectors: list[list[float]] = [
        [index, norm, *x_D[:_NUMBERS]] for index, norm, x_D in zip(subject.ids, norms, x_TD.tolist(), strict=True)
    ]
    nearest = [
        [f"[{name}] {cosine:.3f}" for name, cosine in zip(*each, strict=True)]
        for each in zip(names, best.values.tolist(), strict=True)
    ]
    return {
        "one_hot_difference": float((x_TD - _picked_by_hand(subject.ids_BT[0], table_VD)).abs().max()),
        "vectors": Grid(
            rows=rows, columns=["id", words.numbers["norm"], *(f"x_{j}" for j in range(_NUMBERS))], values=vectors
        ),
        "nearest": Grid(rows=rows, columns=[str(place + 1) for place in range(_NEIGHBOURS)], values=nearest),
    }  # fmt: skip


def _example() -> dict[str, Value]:
    """The notes' snippet, with the table of a Llama: 10,000 rows of 512, and the ids 1, 2, 3, 4."""
    config = ModelConfig(
        vocab_size=10_000, dim=512, n_layers=1, n_heads=8, n_kv_heads=8, head_dim=64, ffn_dim=512, max_seq_len=4,
        tied_embeddings=True,
    )  # fmt: skip
    table, ids = Llama(config).embed_tokens, torch.tensor(_IDS)
    x_TD = table(ids)
    (gradient_VD,) = torch.autograd.grad(x_TD.sum(), table.weight)
    return {
        "output_shape": list(x_TD.shape),
        "table_parameters": embedding_parameters(config),
        "rows_with_gradient": int(gradient_VD.any(-1).sum()),
        "one_hot_difference": float((x_TD - _picked_by_hand(ids, table.weight)).detach().abs().max()),
    }


def _picked_by_hand(ids_T: Tensor, table_VD: Tensor) -> Tensor:
    """One-hot rows times E."""
    return torch.nn.functional.one_hot(ids_T, len(table_VD)).float() @ table_VD


def _cosines_by_hand(x_TD: Tensor, table_VD: Tensor) -> Tensor:
    lengths_TV = x_TD.norm(dim=-1)[:, None] * table_VD.norm(dim=-1)
    return x_TD @ table_VD.T / lengths_TV.clamp(min=1e-12)


TOPIC = Topic(
    name="embedding",
    formula=("x_t = E[id_t],  the same as onehot(id_t) E", "dE[v] = sum over t with id_t = v of dx_t"),
    symbols={"id": "n", "E": "V d", "x": "n d", "onehot(id)": "n V"},
    show=_show,
    code=("puna/model/llama.py", "Llama"),
    test=("tests/model/test_llama.py", "test_the_embedding_is_the_one_hot_product"),
)
