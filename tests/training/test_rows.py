"""A packed row is its documents, each as if it stood alone: in what it holds, in its loss and in every gradient."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from puna.errors import BadData
from puna.model.batch import Batch, join_batches
from puna.model.llama import Llama
from puna.model.loss import Nats
from puna.tokens.shards import Shards
from puna.training.config import StepBudget, TrainingConfig
from puna.training.rows import Rows, cut_rows
from puna.training.step import batch_nats

LENGTHS = (9, 2, 30, 1, 17, 5, 14, 3)  # the third is cut at seq 24


def shards(lengths: tuple[int, ...] = LENGTHS) -> Shards:
    """Documents of random ids below 512, never 0."""
    ends = np.cumsum(lengths)
    tokens = np.random.default_rng(0).integers(1, 512, ends[-1])
    return Shards(
        tokens=tokens, document_ends=ends, vocab_size=512, eos_id=0,
        tokenizer_sha256="", sha256="", sources=("text",), bytes=int(ends[-1]),
    )  # fmt: skip


def rows(seq: int, lengths: tuple[int, ...] = LENGTHS) -> Rows:
    return cut_rows(shards(lengths), TrainingConfig(budget=StepBudget(steps=1), seq=seq, packing="documents"))


def packed(seq: int) -> Batch:
    cut = rows(seq)
    return join_batches([cut.row(index) for index in range(len(cut))])


def pieces(batch: Batch) -> list[tuple[int, slice]]:
    """The row and the place of each document of a packed batch, padding left out."""
    assert batch.documents_BT is not None
    assert batch.keep_BT is not None
    found = []
    for row, (documents, keep) in enumerate(zip(batch.documents_BT, batch.keep_BT, strict=True)):
        for number in documents[keep].unique():
            places = (documents == number).nonzero()[:, 0]
            found.append((row, slice(int(places[0]), int(places[-1]) + 1)))
    return found


def gradients(model: Llama) -> dict[str, Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    assert found.keys() == dict(model.named_parameters()).keys()
    return found


def assert_near(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max()), what


def test_a_worked_example_is_laid_out_as_by_hand() -> None:
    text, cut = shards((4, 6, 1, 10, 3)), rows(5, (4, 6, 1, 10, 3))
    row = cut.row(3)  # documents 0 and 4, of 3 and 2 targets
    ids = text.tokens
    assert row.ids_BT.tolist() == [[*ids[0:3], *ids[21:23]]]
    assert row.targets_BT.tolist() == [[*ids[1:4], *ids[22:24]]]
    assert [row.positions_BT.tolist(), row.documents_BT.tolist()] == [[[0, 1, 2, 0, 1]], [[0, 0, 0, 1, 1]]]
    assert row.keep_BT.all()
    row = cut.row(2)  # the rest of document 3, and a place of padding
    assert row.ids_BT.tolist() == [[*ids[16:20], 0]]
    assert [row.positions_BT.tolist(), row.documents_BT.tolist()] == [[[0, 1, 2, 3, 0]], [[0, 0, 0, 0, 1]]]
    assert row.keep_BT.tolist() == [[True, True, True, True, False]]
    assert cut.documents(3).tolist() == [0, 4]
    assert (len(cut), cut.tokens, cut.padding) == (4, 19, pytest.approx(1 / 20))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(("heads", "seq"), [(4, 24), (2, 24), (1, 64)], ids=["multi", "grouped", "one for all"])
def test_packed_documents_compute_what_separate_ones_do(
    build_llama: Callable[..., Llama], heads: int, seq: int, dtype: torch.dtype, tolerance: float
) -> None:
    model, batch = build_llama(n_kv_heads=heads).to(dtype), packed(seq)
    together = batch_nats(model, batch)
    together.sum.backward()
    expected = gradients(model)
    hidden_BTD = model.hidden(batch.ids_BT, batch.positions_BT, batch.documents_BT).detach()
    apart = Nats(torch.zeros((), dtype=torch.float64), 0)
    for row, place in pieces(batch):
        alone = Batch(ids_BT=batch.ids_BT[row : row + 1, place], targets_BT=batch.targets_BT[row : row + 1, place])
        nats = batch_nats(model, alone)
        nats.sum.backward()
        apart += Nats(nats.sum.detach(), nats.count)
        assert_near(hidden_BTD[row, place], model.hidden(alone.ids_BT).detach()[0], tolerance, "hidden")
    assert apart.count == together.count == sum(length - 1 for length in LENGTHS)
    assert_near(together.sum.detach(), apart.sum, tolerance, "loss")
    for name, gradient in gradients(model).items():
        assert_near(expected[name], gradient, tolerance, name)


def test_no_gradient_reaches_another_document_or_the_padding(tiny: Llama) -> None:
    batch, reached = packed(24), []
    tiny.embed_tokens.register_forward_hook(lambda _module, _given, made: made.retain_grad() or reached.append(made))
    for row, place in pieces(batch):
        hidden_BTD = tiny.hidden(batch.ids_BT, batch.positions_BT, batch.documents_BT)
        hidden_BTD[row, place].square().sum().backward()
        sizes_BT = reached.pop().grad.abs().amax(-1)
        assert (sizes_BT[row, place] > 0).all()
        sizes_BT[row, place] = 0
        assert not sizes_BT.any()


def test_what_stands_in_the_padding_changes_no_bit(tiny: Llama) -> None:
    batch = packed(24)
    before = batch_nats(tiny, batch).sum
    batch.ids_BT[~batch.keep_BT], batch.targets_BT[~batch.keep_BT] = 7, 300
    assert not batch.keep_BT.all()
    assert torch.equal(batch_nats(tiny, batch).sum, before)


def test_windows_and_documents_that_give_no_row_are_bad_data() -> None:
    with pytest.raises(BadData, match="got 2 of a single id each") as caught:
        rows(8, (1, 1))
    assert caught.value.hint
    with pytest.raises(BadData, match="2 tokens are less than one window of 9"):
        cut_rows(shards((1, 1)), TrainingConfig(budget=StepBudget(steps=1), seq=8))
