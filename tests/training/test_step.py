"""One step: the gradient of the mean over all kept targets, however it is split; what is not finite never lands."""

import copy

import pytest
import torch

from puna.errors import BadData
from puna.model.batch import Batch
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer
from puna.training.step import batch_nats, train_step

CONFIG = TrainingConfig(budget=StepBudget(steps=1))


def batch(rows: int = 8, seq: int = 12, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(512, (rows, seq + 1), generator=generator)
    keep = torch.rand(rows, seq, generator=generator) < 0.7
    return Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:], keep_BT=keep)


def split(whole: Batch, rows: int) -> list[Batch]:
    parts = [tensor.split(rows) for tensor in (whole.ids_BT, whole.targets_BT, whole.keep_BT)]
    return [Batch(ids_BT=i, targets_BT=t, keep_BT=k) for i, t, k in zip(*parts, strict=True)]


def step(model, batches, rate=1e-3, clip=1e9, precision="float32", optimizer=None):
    optimizer = build_optimizer(model, CONFIG) if optimizer is None else optimizer
    return train_step(model, optimizer, batches, rate=rate, clip=clip, precision=precision)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_every_split_gives_the_same_gradient(tiny, rows) -> None:
    other, whole = copy.deepcopy(tiny), batch()
    first, second = step(tiny, [whole]), step(other, split(whole, rows))
    assert second.nats == pytest.approx(first.nats, rel=1e-6)
    assert second.targets == first.targets == int(whole.keep_BT.sum())
    assert second.gradient_norm == pytest.approx(first.gradient_norm, rel=1e-6)
    for (name, a), b in zip(tiny.named_parameters(), other.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-6 * a.grad.abs().max(), name


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
