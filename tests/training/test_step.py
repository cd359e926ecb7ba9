"""One step: the gradient of the mean over all kept targets, however it is split; what is not finite never lands."""

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from puna.errors import BadData
from puna.model.batch import Batch, join_batches
from puna.model.norms import running_statistics
from puna.tokens.shards import Shards
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer
from puna.training.rows import cut_rows
from puna.training.step import batch_nats, train_step

CONFIG = TrainingConfig(budget=StepBudget(steps=1))


def batch(rows: int = 8, seq: int = 12, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(512, (rows, seq + 1), generator=generator)
    keep = torch.rand(rows, seq, generator=generator) < 0.7
    return Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:], keep_BT=keep)


def step(model, batches, rate=1e-3, clip=1e9, precision="float32", optimizer=None):
    optimizer = build_optimizer(model, CONFIG) if optimizer is None else optimizer
    return train_step(model, optimizer, batches, rate=rate, clip=clip, precision=precision)


def uneven(whole: Batch) -> Batch:
    """Rows that keep 12, 1, 11, 2 ... targets, and one none at all."""
    kept = torch.tensor([12, 1, 11, 2, 0, 9, 12, 3])
    return replace(whole, keep_BT=torch.arange(12) < kept[:, None])


def in_rows_of(seq: int, seed: int = 0) -> Batch:
    """The same 20 documents of 2 to 40 ids, in rows of `seq` and an order of their own."""
    rng = np.random.default_rng(1)
    ends = np.cumsum(rng.integers(2, 41, 20))
    text = Shards(
        tokens=rng.integers(0, 512, ends[-1]), document_ends=ends, vocab_size=512, eos_id=0,
        tokenizer_sha256="", sha256="", sources=("text",), bytes=0,
    )  # fmt: skip
    rows = cut_rows(text, replace(CONFIG, seq=seq, packing="documents"))
    return join_batches([rows.row(index) for index in np.random.default_rng(seed).permutation(len(rows))])


def split(whole: Batch, rows: int) -> list[Batch]:
    names = [item.name for item in fields(whole) if getattr(whole, item.name) is not None]
    parts = zip(*(getattr(whole, name).split(rows) for name in names), strict=True)
    return [Batch(**dict(zip(names, part, strict=True))) for part in parts]


def assert_same_step(model, first: list[Batch], second: list[Batch]) -> None:
    """The same in float32 to 1e-6 of the gradient's largest entry, and in float64 to 1e-12 of each weight's."""
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        one, other = copy.deepcopy(model).to(dtype), copy.deepcopy(model).to(dtype)
        a, b = step(one, first), step(other, second)
        assert b.nats == pytest.approx(a.nats, rel=tolerance)
        assert b.targets == a.targets == sum(batch.targets for batch in first)
        assert b.gradient_norm == pytest.approx(a.gradient_norm, rel=tolerance)
        largest = max(weight.grad.abs().max() for weight in one.parameters())
        for (name, weight), same in zip(one.named_parameters(), other.parameters(), strict=True):
            size = largest if dtype == torch.float32 else weight.grad.abs().max()
            assert (weight.grad - same.grad).abs().max() <= tolerance * size, name


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize(
    "whole",
    [batch(), uneven(batch()), replace(batch(), keep_BT=None), in_rows_of(54)],
    ids=["random", "uneven", "contiguous", "packed"],
)
def test_every_split_gives_the_same_gradient(tiny, whole, rows) -> None:
    assert len(whole.ids_BT) == 8
    assert_same_step(tiny, [whole], split(whole, rows))


@pytest.mark.parametrize("seq", [40, 64, 256, 1000])
def test_every_packing_of_the_same_documents_gives_the_same_gradient(build_llama, seq) -> None:
    model, first = build_llama(max_seq_len=1024), in_rows_of(64)
    for rows in (1, 3):
        assert_same_step(model, [first], split(in_rows_of(seq, seed=1), rows))


def test_the_nats_are_the_mean_over_kept_targets(tiny) -> None:
    whole = batch()
    logits = tiny(whole.ids_BT).double().log_softmax(-1)
    nats = -logits.gather(-1, whole.targets_BT[..., None])[..., 0][whole.keep_BT]
    assert step(tiny, split(whole, 2)).nats == pytest.approx(float(nats.detach().mean()), rel=1e-5)


def test_a_long_gradient_is_clipped_to_the_norm(tiny) -> None:
    outcome = step(tiny, [batch()], clip=0.01)
    norm = torch.stack([weight.grad.norm() for weight in tiny.parameters()]).norm()
    assert outcome.gradient_norm > 0.01
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_a_step_that_is_dropped_forgets_what_batch_norm_measured(build_llama) -> None:
    model = build_llama(norm="batch")
    parts, optimizer = split(batch(), 2), build_optimizer(model, CONFIG)
    before = {name: measured.clone() for name, measured in running_statistics(model).items()}
    stops = iter((False, True))
    named = {"rate": 1e-3, "clip": 1.0, "precision": "float32", "should_stop": lambda: next(stops)}
    assert train_step(model, optimizer, parts, **named) is None
    assert all(torch.equal(measured, before[name]) for name, measured in running_statistics(model).items())
    assert step(model, parts, optimizer=optimizer).is_applied
    assert not any(torch.equal(measured, before[name]) for name, measured in running_statistics(model).items())


@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_what_is_not_finite_leaves_every_number_as_it_was(tiny, where) -> None:
    optimizer = build_optimizer(tiny, CONFIG)
    step(tiny, [batch()], optimizer=optimizer)  # so that there are moments
    if where == "weight":
        tiny.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    else:
        tiny.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = copy.deepcopy((tiny.state_dict(), optimizer.state_dict()["state"]))
    outcome = step(tiny, [batch(seed=1)], optimizer=optimizer)
    assert (outcome.is_applied, outcome.is_loss_finite) == (False, where == "gradient")
    after = tiny.state_dict(), optimizer.state_dict()["state"]
    for name, tensor in before[0].items():
        assert torch.equal(tensor.view(torch.int32), after[0][name].view(torch.int32)), name
    for index, moments in before[1].items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, after[1][index][name]), (index, name)


def test_a_step_without_a_target_is_bad_data(tiny) -> None:
    empty = batch()
    empty.keep_BT.zero_()
    with pytest.raises(BadData, match="without a single target"):
        step(tiny, [empty])


def test_bfloat16_products_train_float32_weights(tiny) -> None:
    optimizer, same = build_optimizer(tiny, CONFIG), [batch()]
    losses = [step(tiny, same, precision="bfloat16", optimizer=optimizer, rate=3e-3).nats for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]
    assert {weight.dtype for weight in tiny.parameters()} == {torch.float32}
    exact = batch_nats(tiny, same[0]).mean
    assert step(tiny, same, precision="bfloat16", optimizer=optimizer).nats == pytest.approx(exact, rel=2e-2)
