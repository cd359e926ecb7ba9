"""AdamW: matrices decay, gains do not, each parameter stands in one group. Muon: the blocks' matrices, orthogonally."""

from dataclasses import replace

import pytest
import torch

from puna.adaptation.targets import attach
from puna.errors import UsageError
from puna.model.batch import Batch
from puna.model.linears.adapter import LoraSettings
from puna.training.config import StepBudget, TrainingConfig
from puna.training.muon import Muon, orthogonalized
from puna.training.optimizer import build_optimizer, moment_names, trainable
from puna.training.step import train_step

CONFIG = TrainingConfig(budget=StepBudget(steps=1), weight_decay=0.3, beta1=0.8, beta2=0.9)


def test_matrices_decay_and_vectors_do_not(tiny) -> None:
    optimizer = build_optimizer(tiny, CONFIG)
    for group in optimizer.param_groups:
        dims = {weight.dim() >= 2 for weight in group["params"]}
        assert dims == {group["weight_decay"] == 0.3}
        assert group["betas"] == (0.8, 0.9)
    members = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(members) == sorted(id(weight) for weight in tiny.parameters())


def test_a_tied_head_stands_once(build_llama) -> None:
    tied = build_llama(tied_embeddings=True)
    assert "lm_head.weight" not in trainable(tied)
    optimizer = build_optimizer(tied, CONFIG)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(tied.parameters()))


def test_frozen_parameters_are_left_out(tiny) -> None:
    tiny.requires_grad_(requires_grad=False)
    tiny.layers[0].self_attn.q_proj.weight.requires_grad_(requires_grad=True)
    assert list(trainable(tiny)) == ["layers.0.self_attn.q_proj.weight"]
    assert len(build_optimizer(tiny, CONFIG).param_groups) == 1


def test_decay_alone_shrinks_matrices_by_the_rate_times_the_decay(tiny) -> None:
    optimizer = build_optimizer(tiny, CONFIG)
    before = {name: weight.detach().clone() for name, weight in trainable(tiny).items()}
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    for weight in tiny.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in trainable(tiny).items():
        factor = 1 - 0.5 * 0.3 if weight.dim() >= 2 else 1
        torch.testing.assert_close(weight.detach(), before[name] * factor, rtol=1e-6, atol=0)


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(tiny) -> None:
    optimizer = build_optimizer(tiny, replace(CONFIG, optimizer="muon"))
    members = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(members) == sorted(id(weight) for weight in tiny.parameters())
    muons = {
        name for name, weight in trainable(tiny).items() if moment_names(optimizer, weight) == ("momentum_buffer",)
    }
    assert muons == {name for name, weight in trainable(tiny).items() if "proj" in name}
    assert moment_names(build_optimizer(tiny, CONFIG), tiny.layers[0].mlp.up_proj.weight)[0] == "exp_avg"


def test_a_step_of_muon_is_the_rate_times_an_orthogonal_matrix_of_adamws_size(tiny) -> None:
    optimizer = build_optimizer(tiny, replace(CONFIG, optimizer="muon", weight_decay=0.0))
    weight = tiny.layers[0].mlp.up_proj.weight
    before, generator = weight.detach().clone(), torch.Generator().manual_seed(0)
    for each in tiny.parameters():
        each.grad = torch.randn(each.shape, generator=generator)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    update = (before - weight.detach()) / 0.5
    singular = torch.linalg.svdvals(update) / (0.2 * max(weight.shape) ** 0.5)
    assert ((singular > 0.6) & (singular < 1.3)).all()  # five steps bring them near 1
    assert update.pow(2).mean().sqrt() == pytest.approx(0.2, rel=0.2)
    assert set(optimizer.state[weight]) == {"momentum_buffer"}


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)])
def test_muons_steps_are_torchs_but_for_its_sixteen_bits(shape) -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(shape, generator=generator), torch.randn(4, *shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.1, weight_decay=0.3),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
    )
    for gradient in gradients:
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved
    [momentum], [theirs_momentum] = ([state["momentum_buffer"] for state in each.state.values()] for each in optimizers)
    torch.testing.assert_close(momentum, theirs_momentum)


def test_what_muon_follows_keeps_the_momentums_directions() -> None:
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    found = U.T @ orthogonalized(matrix) @ Vh.T
    assert ((found.diagonal() > 0.6) & (found.diagonal() < 1.3)).all()
    assert (found - found.diagonal().diag()).abs().max() < 1e-4
    assert orthogonalized(torch.zeros(3, 4)).abs().max() == 0


def test_an_adapters_b_learns_at_a_rate_of_its_own(tiny) -> None:
    attach(tiny, LoraSettings(rank=2, alpha=4.0, targets=("q_proj",), magnitudes=True), seed=0)
    optimizer = build_optimizer(tiny, replace(CONFIG, lora_b_ratio=16.0))
    members = sorted(id(weight) for group in optimizer.param_groups for weight in group["params"])
    assert members == sorted(id(weight) for weight in trainable(tiny).values())
    rows = torch.arange(40).view(2, 20)
    batch = Batch(ids_BT=rows, targets_BT=rows)
    train_step(tiny, optimizer, [batch], rate=1e-3, clip=1.0, precision="float32")
    ratios = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in trainable(tiny).items():
        assert ratios[id(weight)] == (16e-3 if name.endswith(".B") else 1e-3)
    with pytest.raises(UsageError, match=r"lora_b_ratio: expected 1 beside muon"):
        replace(CONFIG, lora_b_ratio=2.0, optimizer="muon")
    with pytest.raises(UsageError, match=r"lora_b_ratio: expected more than 0"):
        replace(CONFIG, lora_b_ratio=0.0)
