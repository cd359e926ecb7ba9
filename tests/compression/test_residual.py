"""Corrections of what rounding lost: the loss is what is left, turns never make it worse, and what is read counts."""

import pytest
import torch
from torch import Tensor

from puna.arch.rounding import ROUNDINGS
from puna.compression.residual import CORRECTIONS, Correction, correct
from puna.compression.rounding import Residual, round_linears
from puna.compression.statistics import collect_statistics
from puna.errors import UsageError
from puna.model.linears.corrected import CorrectedLinear
from puna.model.linears.kind import dense_weight
from puna.model.linears.rounded import rounded
from puna.model.llama import Llama
from puna.model.surgery import named_linears

D = 128


def problem() -> tuple[Tensor, Tensor]:
    """A weight in float64, and the Gram of anisotropic inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(D, D, generator=generator, dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0]
    scales = torch.logspace(0, -2, D, dtype=torch.float64)
    return weight, mixing @ torch.diag(scales.square()) @ mixing.T


def left(weight: Tensor, linear: CorrectedLinear, gram: Tensor | None) -> float:
    """|W - Q - L R|^2, or of that times the root of the Gram."""
    lost = weight - linear.base.dense_weight().double() - linear.L.double() @ linear.R.double()
    return float((lost.square() if gram is None else (lost @ gram) * lost).sum().detach())


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("rank", [1, 16])
def test_the_loss_is_what_is_left(correction: Correction, rank: int) -> None:
    weight, gram = problem()
    metric = gram if correction in ("whitened", "alternating") else None
    linear, loss = correct(weight, "nf4", rank, correction, gram)
    assert (linear.rank, linear.L.dtype) == (rank, torch.float64)
    assert left(weight, linear, metric) == pytest.approx(loss, rel=1e-9)
    torch.testing.assert_close(dense_weight(linear).double(), linear.base.dense_weight().double()
                               + linear.L.double() @ linear.R.double())  # fmt: skip


@pytest.mark.parametrize("to", ROUNDINGS)
def test_turns_and_what_is_read_make_it_less(to) -> None:
    weight, gram = problem()
    losses = {name: left(weight, correct(weight, to, 16, name, gram)[0], gram) for name in CORRECTIONS}
    alone = left(weight, CorrectedLinear(rounded(weight, to), torch.zeros(D, 1), torch.zeros(1, D)), gram)
    assert losses["alternating"] <= losses["whitened"] < losses["plain"] < alone
    assert left(weight, correct(weight, to, 16, "loftq")[0], None) <= left(
        weight, correct(weight, to, 16, "plain")[0], None
    )
    if to == "nf4":
        assert losses["whitened"] < 0.6 * losses["plain"]


def test_a_wrong_rank_and_an_unknown_way_are_refused() -> None:
    weight, gram = problem()
    for rank in (0, D + 1):
        with pytest.raises(UsageError, match="residual rank: expected 1 to 128"):
            correct(weight, "int8", rank, "whitened", gram)
    with pytest.raises(UsageError, match="unknown correction"):
        correct(weight, "int8", 4, "turned")  # type: ignore[arg-type]


@torch.no_grad()
def test_a_model_is_corrected_by_what_its_linears_read(tiny: Llama) -> None:
    ids = torch.arange(64)[None]
    grams, before = collect_statistics(tiny, [ids]).grams, tiny(ids)
    weights = {path: dense_weight(linear).clone() for path, linear in named_linears(tiny)}
    round_linears(tiny, "nf4", Residual(rank=8, grams=grams))
    kinds = {type(linear) for _, linear in named_linears(tiny)}
    assert kinds == {CorrectedLinear}
    with_correction = float((tiny(ids) - before).norm())
    for path, linear in named_linears(tiny):
        assert isinstance(linear, CorrectedLinear)
        assert torch.equal(
            linear.L.detach(), correct(weights[path], "nf4", 8, "alternating", grams[path])[0].L.detach()
        )
    model_without = {path: rounded(weight, "nf4") for path, weight in weights.items()}
    for path, linear in model_without.items():
        parent, _, name = path.rpartition(".")
        setattr(tiny.get_submodule(parent), name, linear)
    assert with_correction < float((tiny(ids) - before).norm())
