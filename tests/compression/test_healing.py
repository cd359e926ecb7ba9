"""Healing moves the factors and nothing else, towards what the dense model predicts."""

import pytest
import torch

from puna.compression.allocation import uniform_ranks
from puna.compression.healing import Distillation, shared_copy, teacher, train_everything, train_factors
from puna.compression.low_rank import compress_low_rank, decompose_groups, decompose_linears
from puna.model.batch import Batch
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import get_linear, named_linears
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer, trainable
from puna.training.step import train_step

QKV = "layers.0.self_attn.q_proj+k_proj+v_proj"


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(0, 512, (4, 25), generator=torch.Generator().manual_seed(3))
    return Batch(
        ids_BT=ids[:, :-1],
        targets_BT=ids[:, 1:],
        keep_BT=torch.arange(24)[None] < torch.tensor([24, 24, 5, 11])[:, None],
    )


@pytest.fixture
def halved(tiny: Llama) -> Llama:
    """A copy of which most matrices are factorised."""
    model = shared_copy(tiny)
    compress_low_rank(model, decompose_linears(model), uniform_ranks(model.config, 0.5))
    return model


def mean_kl(first: Llama, second: Llama, batch: Batch) -> float:
    p, q = (model(batch.ids_BT).detach().double().log_softmax(-1) for model in (first, second))
    return float((p.exp() * (p - q)).sum(-1)[batch.keep_BT].mean())


def test_a_shared_copy_shares_every_tensor_and_is_cut_alone(tiny: Llama) -> None:
    copied = shared_copy(tiny)
    own = dict(tiny.named_parameters())
    assert all(weight is own[name] for name, weight in copied.named_parameters())
    assert all(a is not b for a, b in zip(tiny.modules(), copied.modules(), strict=True))
    assert copied.lm_head.weight is copied.embed_tokens.weight
    dense = get_linear(tiny, "layers.0.mlp.up_proj")
    compress_low_rank(copied, decompose_linears(copied), uniform_ranks(copied.config, 0.5))
    assert get_linear(tiny, "layers.0.mlp.up_proj") is dense
    assert isinstance(get_linear(copied, "layers.0.mlp.up_proj"), LowRankLinear)


def test_the_loss_is_the_divergence_of_the_kept_tokens(tiny: Llama, halved: Llama, batch: Batch) -> None:
    nats = Distillation(tiny)(halved, batch)
    assert nats.count == batch.targets
    assert nats.mean == pytest.approx(mean_kl(tiny, halved, batch), rel=1e-5)
    assert Distillation(tiny)(shared_copy(tiny), batch).mean == 0


def test_only_factors_learn_a_shared_one_once(tiny: Llama) -> None:
    model = shared_copy(tiny)
    compress_low_rank(model, decompose_groups(model), {QKV: 7, "layers.1.mlp.down_proj": 5})
    config = model.config
    group = 7 * (config.dim + config.dim + 2 * config.n_kv_heads * config.head_dim)
    assert train_factors(model) == group + 5 * (config.dim + config.ffn_dim)
    assert {name.rpartition(".")[2] for name in trainable(model)} == {"U", "V"}
    assert train_factors(shared_copy(tiny)) == 0


def test_steps_bring_the_predictions_nearer_and_leave_the_dense_model_alone(
    tiny: Llama, halved: Llama, batch: Batch
) -> None:
    before, dense = mean_kl(tiny, halved, batch), {name: each.clone() for name, each in tiny.named_parameters()}
    stored = sum(weight.numel() for _, linear in named_linears(halved) for weight in linear.parameters())
    train_factors(halved)
    config = TrainingConfig(budget=StepBudget(steps=8), weight_decay=0.0)
    optimizer, loss = build_optimizer(halved, config), Distillation(tiny)
    for _ in range(8):
        outcome = train_step(halved, optimizer, [batch], rate=3e-3, clip=1.0, precision="float32", loss=loss)
        assert outcome is not None
        assert outcome.is_applied
    assert mean_kl(tiny, halved, batch) < 0.5 * before
    assert all(torch.equal(weight, dense[name]) for name, weight in tiny.named_parameters())
    assert sum(weight.numel() for _, linear in named_linears(halved) for weight in linear.parameters()) == stored


def test_the_first_step_sees_the_unhealed_model(tiny: Llama, halved: Llama, batch: Batch) -> None:
    expected = mean_kl(tiny, halved, batch)
    train_factors(halved)
    optimizer = build_optimizer(halved, TrainingConfig(budget=StepBudget(steps=1)))
    outcome = train_step(
        halved, optimizer, [batch], rate=1e-3, clip=1.0, precision="float32", loss=Distillation(tiny)
    )  # fmt: skip
    assert outcome is not None
    assert outcome.nats == pytest.approx(expected, rel=1e-5)


def test_a_teacher_stays_as_it_was_while_everything_learns(tiny: Llama) -> None:
    for everything in (True, False):
        dense = teacher(tiny, everything_learns=everything)
        assert (dense.norm.weight is tiny.norm.weight) == (not everything)
    train_factors(tiny)
    assert train_everything(tiny) == sum(weight.numel() for weight in tiny.parameters())
    assert all(weight.requires_grad for weight in tiny.parameters())
