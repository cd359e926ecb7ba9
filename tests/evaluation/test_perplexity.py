"""The likelihood of a text: by hand, in any batches, and as Hugging Face computed it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puna.arch.config import ModelConfig
from puna.errors import BadData, NonFiniteLoss, UsageError
from puna.evaluation import perplexity
from puna.evaluation.perplexity import Likelihood, evaluate_text, evaluate_windows
from puna.model.batch import Batch
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.tokens.learning import learn_tokenizer
from puna.tokens.tokenizer import Tokenizer, load_tokenizer
from puna.weights.loading import load_llama

T32 = 1e-5
DATA = Path(__file__).parents[3] / "shared" / "data"
TEXT = "The llama eats grass on the high plain; 你好, and so on. " * 6


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_tokenizer([TEXT], vocab_size=290)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        max_seq_len=64,
    )
    model = initialise(Llama(config), seed=0)
    for weight in model.parameters():
        weight.data *= 8 if weight.dim() == 2 else 1
    return model


@pytest.fixture
def no_bos(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    monkeypatch.setattr(tokenizer, "bos_id", None)
    return tokenizer


@torch.no_grad()
def nats_of(model: Llama, context: list[int], ids: list[int]) -> float:
    """-sum ln p(ids | context), straight from the logits."""
    log_p = model(torch.tensor([[*context, *ids]])).double().log_softmax(-1)[0]
    return -float(sum(log_p[len(context) + i - 1, token] for i, token in enumerate(ids)))


def test_every_id_counts_once_after_bos(model: Llama, tokenizer: Tokenizer) -> None:
    ids, bos = tokenizer.encode(TEXT), [tokenizer.bos_id]
    found = evaluate_text(model, tokenizer, TEXT, window=16)
    expected = [nats_of(model, bos, ids[start : start + 16]) for start in range(0, len(ids), 16)]
    assert len(ids) % 16
    assert found.window_nats == pytest.approx(expected, rel=T32)
    assert found.tokens == len(ids) == sum(found.window_tokens)
    assert found.window_tokens[-1] == len(ids) % 16
    assert (found.bytes, found.characters) == (len(TEXT.encode()), len(TEXT))


def test_without_bos_the_id_before_the_window_is_its_context(model: Llama, no_bos: Tokenizer) -> None:
    ids = no_bos.encode(TEXT)
    found = evaluate_text(model, no_bos, TEXT, window=16)
    expected = [nats_of(model, [ids[start - 1]], ids[start : start + 16]) for start in range(1, len(ids), 16)]
    assert found.window_nats == pytest.approx(expected, rel=T32)
    assert found.tokens == len(ids) - 1


def test_overlapping_windows_count_every_id_once(model: Llama, tokenizer: Tokenizer) -> None:
    ids, bos = tokenizer.encode(TEXT), [tokenizer.bos_id]
    found = evaluate_text(model, tokenizer, TEXT, window=16, stride=6)
    expected, counted = [], 0
    for start in range(0, len(ids), 6):
        end = min(start + 16, len(ids))
        if end > counted:
            expected.append(nats_of(model, bos + ids[start:counted], ids[counted:end]))
        counted = end
    assert found.window_nats == pytest.approx(expected, rel=T32)
    assert found.tokens == len(ids)


@pytest.mark.parametrize("stride", [None, 5])
def test_batches_do_not_change_the_result(
    model: Llama, tokenizer: Tokenizer, stride: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = (TEXT, "Short.", TEXT[:100])
    together = evaluate_text(model, tokenizer, *texts, window=16, stride=stride)
    monkeypatch.setattr(perplexity, "_BATCH_TOKENS", 1)
    alone = evaluate_text(model, tokenizer, *texts, window=16, stride=stride)
    assert together.window_nats == pytest.approx(alone.window_nats, rel=T32)
    assert together.window_tokens == alone.window_tokens


def test_texts_do_not_see_each_other(model: Llama, tokenizer: Tokenizer) -> None:
    first, second = TEXT[:80], TEXT[100:150]
    both = evaluate_text(model, tokenizer, first, second)
    parts = [evaluate_text(model, tokenizer, text) for text in (first, second)]
    assert both.nats == pytest.approx(sum(part.nats for part in parts), rel=T32)
    assert both.tokens == sum(part.tokens for part in parts)
    assert both.bytes == sum(len(text.encode()) for text in (first, second))
    assert both.nats != pytest.approx(evaluate_text(model, tokenizer, first + second).nats, rel=T32)


def test_default_window_leaves_room_for_bos(model: Llama, tokenizer: Tokenizer) -> None:
    assert evaluate_text(model, tokenizer, TEXT).window_tokens[0] == 63


def test_windows_of_ids_keep_what_the_batch_keeps(model: Llama) -> None:
    ids = torch.randint(280, (3, 11), generator=torch.Generator().manual_seed(0))
    keep = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) < 0.5
    batch = Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:])
    whole = evaluate_windows(model, [batch])
    kept = evaluate_windows(model, [replace(batch, keep_BT=keep), replace(batch, keep_BT=~keep)])
    assert whole.window_tokens == (10, 10, 10)
    assert kept.window_tokens == (*keep.sum(1).tolist(), *(~keep).sum(1).tolist())
    assert whole.nats == pytest.approx(kept.nats, rel=T32)
    assert whole.window_nats[1] == pytest.approx(nats_of(model, ids[1, :1].tolist(), ids[1, 1:].tolist()), rel=T32)


def test_units_by_hand() -> None:
    found = Likelihood(window_nats=(7.0, 1.0), window_tokens=(3, 1), bytes=16, characters=8, seconds=0.5)
    assert found.nats_per_token == 2
    assert found.perplexity == pytest.approx(math.e**2)
    assert found.bits_per_byte == pytest.approx(0.5 / math.log(2))
    assert found.bits_per_character == pytest.approx(1 / math.log(2))
    assert found.tokens_per_second == 8


def test_equal_logits_cost_ln_of_the_vocabulary(model: Llama, tokenizer: Tokenizer) -> None:
    blank = Llama(model.config)
    blank.lm_head.weight.data.zero_()
    found = evaluate_text(blank, tokenizer, TEXT)
    assert found.nats_per_token == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(0, None), (65, None), (16, 0), (16, 17)])
def test_windows_beyond_the_context_or_with_gaps_are_refused(
    model: Llama, tokenizer: Tokenizer, window: int, stride: int | None
) -> None:
    with pytest.raises(UsageError, match=r"window|stride"):
        evaluate_text(model, tokenizer, TEXT, window=window, stride=stride)


def test_an_empty_text_is_refused(model: Llama, tokenizer: Tokenizer) -> None:
    with pytest.raises(BadData, match="at least one id"):
        evaluate_text(model, tokenizer, "")


def test_weights_that_are_no_numbers_are_refused(model: Llama, tokenizer: Tokenizer) -> None:
    damaged = initialise(Llama(model.config), seed=1)
    damaged.norm.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteLoss):
        evaluate_text(damaged, tokenizer, TEXT)


@pytest.mark.skipif(not DATA.exists(), reason="the reference checkpoint is not here")
def test_reproduces_the_reference_of_hugging_face() -> None:
    checkpoint = DATA / "checkpoints" / "small"
    reference = json.loads((checkpoint / "reference.json").read_text())
    text = (DATA / "texts" / "tinyshakespeare.txt").read_text(encoding="utf-8")[1_000_000:]
    tokenizer = load_tokenizer(checkpoint / "base")
    found = evaluate_text(load_llama(checkpoint / "base"), tokenizer, text, window=reference["window"])
    expected = reference["base"]["shakespeare_tail"]  # made of whole windows: the shorter last one was left out
    whole = replace(found, window_nats=found.window_nats[:-1], window_tokens=found.window_tokens[:-1])
    assert whole.tokens == expected["tokens"]
    assert whole.nats_per_token == pytest.approx(expected["nats_per_token"], abs=1e-4)
