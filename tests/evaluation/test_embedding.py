"""Vectors of texts: alone as in company, by hand, at unit length, and what is cut is said."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from puna.arch.attention_pattern import SlidingWindow
from puna.errors import BadData, NonFiniteLoss, UsageError
from puna.evaluation import embedding
from puna.evaluation.embedding import Pool, embed_ids, embed_texts
from puna.model.llama import Llama
from puna.tokens.learning import learn_tokenizer
from puna.tokens.tokenizer import Tokenizer

T32 = 1e-5
SENTENCE = "The llama eats grass on the high plain; 你好, and so on. "
TEXTS = ["A llama.", SENTENCE * 3, "x", SENTENCE, "Two steps over the stone.", SENTENCE * 2, "好", "A llama."]
POOLS: tuple[Pool, ...] = ("mean", "last")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_tokenizer([SENTENCE * 6], vocab_size=290)


@pytest.fixture
def no_bos(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    monkeypatch.setattr(tokenizer, "bos_id", None)
    return tokenizer


@torch.no_grad()
def states(model: Llama, ids: list[int]) -> torch.Tensor:
    """The states of one row after the final norm, (T, D)."""
    return model.hidden(torch.tensor([ids]))[0]


@pytest.mark.parametrize("changes", [{}, {"pattern": SlidingWindow(window=4)}, {"norm": "batch"}], ids=str)
@pytest.mark.parametrize("budget", [1, 64, 2048])
@pytest.mark.parametrize("pool", POOLS)
def test_a_text_has_the_same_vector_alone_and_in_any_company(
    build_llama: Callable[..., Llama], tokenizer: Tokenizer, pool: Pool, budget: int, changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = build_llama(**changes).train()  # which embedding ends
    alone = torch.cat([embed_texts(model, tokenizer, [text], pool).vectors_ND for text in TEXTS])
    monkeypatch.setattr(embedding, "_BATCH_TOKENS", budget)
    together = embed_texts(model, tokenizer, TEXTS, pool).vectors_ND
    assert together.dtype == torch.float32
    assert not together.requires_grad
    assert not together.is_inference()  # something may be trained on them
    torch.testing.assert_close(together, alone, rtol=0, atol=T32)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(TEXTS)), rtol=0, atol=T32)
    assert (alone[:7] - alone[1:]).norm(dim=1).min() > 0.01  # in their order, and not all alike


def test_the_mean_is_over_a_texts_own_ids(tiny: Llama, tokenizer: Tokenizer) -> None:
    expected = F.normalize(states(tiny, tokenizer.encode(SENTENCE, bos=True))[1:].mean(0), dim=0)
    found = embed_texts(tiny, tokenizer, ["x", SENTENCE]).vectors_ND[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=T32)


def test_without_bos_the_mean_is_over_all_ids(tiny: Llama, no_bos: Tokenizer) -> None:
    expected = F.normalize(states(tiny, no_bos.encode(SENTENCE)).mean(0), dim=0)
    torch.testing.assert_close(embed_texts(tiny, no_bos, [SENTENCE]).vectors_ND[0], expected, rtol=0, atol=T32)


def test_last_is_the_state_at_the_last_id(tiny: Llama, tokenizer: Tokenizer) -> None:
    expected = F.normalize(states(tiny, tokenizer.encode("x", bos=True))[-1], dim=0)
    found = embed_texts(tiny, tokenizer, ["x", SENTENCE], "last").vectors_ND[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=T32)


def test_a_row_that_is_context_alone_is_its_last_state(tiny: Llama) -> None:
    mean, last = (embed_ids(tiny, [[7], [7, 8]], pool, context_ids=1) for pool in POOLS)
    torch.testing.assert_close(mean, last, rtol=0, atol=T32)


@pytest.mark.parametrize("pool", POOLS)
def test_a_text_longer_than_the_context_is_cut_to_it_and_that_is_said(
    build_llama: Callable[..., Llama], tokenizer: Tokenizer, pool: Pool
) -> None:
    model = build_llama(max_seq_len=32)
    ids = tokenizer.encode(SENTENCE * 3, bos=True)
    assert len(ids) > 32
    found = embed_texts(model, tokenizer, ["x", SENTENCE * 3, SENTENCE * 4], pool)
    assert found.notices == ("embed: 2 of 3 texts cut to the context of 32 ids, first text 2",)
    torch.testing.assert_close(found.vectors_ND[1:2], embed_ids(model, [ids[:32]], pool, context_ids=1))
    assert embed_texts(model, tokenizer, ["x"], pool).notices == ()


def test_vectors_of_a_model_in_16_bits_are_pooled_in_float32(tiny: Llama, tokenizer: Tokenizer) -> None:
    whole = embed_texts(tiny, tokenizer, TEXTS).vectors_ND
    found = embed_texts(tiny.bfloat16(), tokenizer, TEXTS).vectors_ND
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)), rtol=0, atol=T32)
    assert (found * whole).sum(1).min() > 0.99


def test_batches_hold_every_row_once_and_keep_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_BATCH_TOKENS", 20)
    lengths = [3, 9, 1, 25, 9, 2, 2, 20, 7]
    batches = list(embedding._batches(lengths))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    sizes = [len(batch) * max(lengths[place] for place in batch) for batch in batches]
    assert max(sizes) == 25  # a row of its own
    assert sorted(sizes)[-2] <= 20
    assert len(batches) == 5


def test_what_cannot_be_embedded_is_refused(tiny: Llama, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="expected a list of texts, got one string"):
        embed_texts(tiny, tokenizer, "text")
    with pytest.raises(UsageError, match="at least one text"):
        embed_texts(tiny, tokenizer, [])
    with pytest.raises(BadData, match="got an empty one, text 2 of 3"):
        embed_texts(tiny, tokenizer, ["a", "", "b"])
    with pytest.raises(UsageError, match="unknown pool 'men'") as caught:
        embed_texts(tiny, tokenizer, ["a"], "men")  # type: ignore[arg-type]
    assert "did you mean 'mean'?" in caught.value.hint
    tiny.norm.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteLoss):
        embed_texts(tiny, tokenizer, ["a"])
