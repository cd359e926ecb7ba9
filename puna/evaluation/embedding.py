"""Vectors of texts: a model's states after the final norm, pooled over each text's ids, at unit length in float32.

    mean   v = 1/T sum h_t over the text's own T ids: BOS is context, as in perplexity.py, and left out
    last   v = h_T, the state at its last id, which has read all of it
    both   v / |v|

A state never depends on what follows it: a batch's rows are filled up at the right, and a text has the same vector in
any company. Sources: mean: Reimers & Gurevych 2019, arXiv:1908.10084, section 3. last: Neelakantan et al. 2022,
arXiv:2201.10005.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from puna.errors import BadData, NonFiniteLoss, UsageError, unknown_name
from puna.model.llama import Llama
from puna.tokens.tokenizer import Tokenizer

__all__ = ["Embedding", "Pool", "embed_ids", "embed_texts"]

Pool = Literal["mean", "last"]
_BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """Texts as vectors_ND, one a row; `notices` says what of them was not read."""

    vectors_ND: Tensor
    notices: tuple[str, ...]


def embed_texts(model: Llama, tokenizer: Tokenizer, texts: Sequence[str], pool: Pool = "mean") -> Embedding:
    """Each text preceded by BOS if the tokenizer has one, and cut to the context where it is longer.

    Raises: UsageError: a single string, no text, an unknown pool. BadData: an empty text. NonFiniteLoss.
    """
    if isinstance(texts, str):
        raise UsageError("embed: expected a list of texts, got one string", "put it in a list: [text]")
    if not texts:
        raise UsageError("embed: expected at least one text, got none", "give a text")
    for place, text in enumerate(texts, 1):
        if not text:
            raise BadData(f"embed: expected texts, got an empty one, text {place} of {len(texts)}", "leave it out")
    context, has_bos = model.config.max_seq_len, tokenizer.bos_id is not None
    rows = [tokenizer.encode(text, bos=True) for text in texts]
    vectors_ND = embed_ids(model, [ids[:context] for ids in rows], pool, context_ids=int(has_bos))
    cut = [place for place, ids in enumerate(rows, 1) if len(ids) > context]
    if not cut:
        return Embedding(vectors_ND=vectors_ND, notices=())
    notice = f"embed: {len(cut)} of {len(texts)} texts cut to the context of {context} ids, first text {cut[0]}"
    return Embedding(vectors_ND=vectors_ND, notices=(notice,))


@torch.no_grad()
def embed_ids(model: Llama, rows: Sequence[Sequence[int]], pool: Pool = "mean", *, context_ids: int = 0) -> Tensor:
    """Rows of ids as vectors_ND of length 1, float32 on the CPU, in the rows' order.

    Args:   rows: each of at least one id and at most the context's.
            context_ids: so many ids begin each row as context only; the mean leaves them out unless the row ends there.
    Raises: UsageError: an unknown pool. NonFiniteLoss: the model gives no numbers.
    """
    if pool not in get_args(Pool):
        raise unknown_name("pool", pool, get_args(Pool))
    model.eval()
    vectors_ND = torch.empty(len(rows), model.config.dim)
    for places in _batches([len(ids) for ids in rows]):
        vectors_ND[places] = _pooled([rows[place] for place in places], model, pool, context_ids).cpu()
    if not vectors_ND.isfinite().all():
        raise NonFiniteLoss(
            "embed: expected finite numbers, got NaN or infinity",
            "the model's weights are damaged, or overflow in 16 bits: try --precision float32",
        )
    return F.normalize(vectors_ND, dim=-1)


def _pooled(rows: Sequence[Sequence[int]], model: Llama, pool: Pool, context_ids: int) -> Tensor:
    """One batch of rows, (B, D) in float32 where the model is."""
    ids_BT = pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True).to(model.device)
    last_B = torch.tensor([len(ids) - 1 for ids in rows], device=model.device)
    hidden_BTD = model.hidden(ids_BT).float()
    if pool == "last":
        return hidden_BTD[torch.arange(len(rows), device=model.device), last_B]
    index_T, first_B = torch.arange(ids_BT.shape[1], device=model.device), last_B.clamp(max=context_ids)
    keep_BT = (first_B[:, None] <= index_T) & (index_T <= last_B[:, None])
    return hidden_BTD.where(keep_BT[..., None], 0.0).sum(1) / keep_BT.sum(1, keepdim=True)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The rows' places, longest rows first, so many at once as make _BATCH_TOKENS when filled up; at least one."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    start = 0
    while start < len(order):
        count = max(1, _BATCH_TOKENS // lengths[order[start]])
        yield order[start : start + count]
        start += count
