"""The chunked loss is the naive one, in value and gradient, without its memory. math.md 1.10."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from puna.model import loss
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.kind import AnyLinear
from puna.model.linears.lora import LoraLinear
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.loss import Nats, chunked_kl, chunked_nats, token_nats
from tests.allocated import allocated_peak

D, V, B, T = 12, 50, 2, 11
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.fixture(params=[1, 3, B * T - 1, B * T, B * T + 1], ids=lambda size: f"chunks of {size}")
def chunk_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(loss, "_CHUNK_LOGITS", request.param * V)
    monkeypatch.setattr(loss, "_CHUNK_TOKENS", 1)
    return request.param


def dense(vocab: int = V, dim: int = D) -> nn.Linear:
    torch.manual_seed(0)
    head = nn.Linear(dim, vocab, bias=False)
    nn.init.normal_(head.weight, std=dim**-0.5)
    return head


def lora() -> LoraLinear:
    head = LoraLinear(dense(), LoraSettings(rank=3, alpha=6.0, targets=()), torch.Generator().manual_seed(1))
    nn.init.normal_(head.B, std=0.3)
    return head


def low_rank() -> LowRankLinear:
    torch.manual_seed(2)
    return LowRankLinear(torch.randn(V, 4) / 2, torch.randn(4, D) / 3)


HEADS: dict[str, Callable[[], AnyLinear]] = {
    "dense": dense,
    "frozen": lambda: dense().requires_grad_(requires_grad=False),
    "lora": lora,
    "low rank": low_rank,
}
KEEPS: dict[str, Tensor | None] = {
    "all": None,
    "some": torch.rand(B, T, generator=torch.Generator().manual_seed(3)) < 0.6,
    "one": torch.arange(B * T).view(B, T) == B * T - 1,
}


def hidden(dtype: torch.dtype = torch.float32, rows: int = B, tokens: int = T) -> Tensor:
    return torch.randn(rows, tokens, D, generator=torch.Generator().manual_seed(4)).to(dtype).requires_grad_()


def targets(rows: int = B, tokens: int = T, vocab: int = V) -> Tensor:
    return torch.randint(0, vocab, (rows, tokens), generator=torch.Generator().manual_seed(5))


def naive_nats(head: AnyLinear, hidden_BTD: Tensor, targets_BT: Tensor, keep_BT: Tensor | None) -> Tensor:
    nats_BT = F.cross_entropy(head(hidden_BTD).flatten(0, 1), targets_BT.flatten(), reduction="none").view_as(
        targets_BT
    )
    return nats_BT.sum() if keep_BT is None else nats_BT[keep_BT].sum()


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((got - expected).detach().abs().max()) <= tolerance * float(expected.detach().abs().max())


def assert_same(got: Nats, expected: Tensor, leaves: tuple[Tensor, ...], keep: Tensor | None) -> None:
    """The count, the sum, and the gradient of every leaf, in the leaf's own type."""
    tolerance = TOLERANCE[leaves[0].dtype]
    assert got.count == (B * T if keep is None else int(keep.sum()))
    assert got.sum.dtype == torch.float64
    assert_near(got.sum, expected, tolerance)
    gradients = (torch.autograd.grad(3 * value / got.count, leaves) for value in (got.sum, expected))
    for leaf, ours, theirs in zip(leaves, *gradients, strict=True):
        assert ours.dtype == leaf.dtype
        assert_near(ours, theirs, tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS.keys())
@pytest.mark.parametrize("kind", HEADS)
def test_chunked_equals_naive_in_value_and_gradients(
    kind: str, keep: Tensor | None, dtype: torch.dtype, chunk_tokens: int
) -> None:
    head, x = HEADS[kind]().to(dtype), hidden(dtype)
    leaves = (x, *(weight for weight in head.parameters() if weight.requires_grad))
    assert_same(chunked_nats(head, x, targets(), keep), naive_nats(head, x, targets(), keep), leaves, keep)


def naive_kl(head: AnyLinear, hidden_BTD: Tensor, reference_BTV: Tensor, keep_BT: Tensor | None) -> Tensor:
    p, q = head(hidden_BTD).log_softmax(-1), reference_BTV.log_softmax(-1)
    kl_BT = (q.exp() * (q - p)).sum(-1)
    return kl_BT.sum() if keep_BT is None else kl_BT[keep_BT].sum()


def reference(dtype: torch.dtype) -> tuple[nn.Linear, Tensor]:
    """Another model's head, wider inputs than ours, and what it reads."""
    wide = dense(dim=D + 3).to(dtype)
    return wide, torch.randn(B, T, D + 3, generator=torch.Generator().manual_seed(8)).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS.keys())
@pytest.mark.parametrize("kind", HEADS)
def test_chunked_divergence_equals_the_naive_one_in_value_and_gradients(
    kind: str, keep: Tensor | None, dtype: torch.dtype, chunk_tokens: int
) -> None:
    head, x, (other, read) = HEADS[kind]().to(dtype), hidden(dtype), reference(dtype)
    leaves = (x, *(weight for weight in head.parameters() if weight.requires_grad))
    assert_same(chunked_kl(head, x, other, read, keep), naive_kl(head, x, other(read).detach(), keep), leaves, keep)
    assert read.grad is None
    assert other.weight.grad is None


def test_a_model_diverges_from_itself_by_nothing() -> None:
    head, x = dense(), hidden()
    nats = chunked_kl(head, x, head, x)
    nats.sum.backward()
    assert float(nats.sum.detach()) == 0
    assert x.grad is not None
    assert not x.grad.any()


def test_a_tied_table_gets_the_gradient_of_both_its_uses(tiny: Llama) -> None:
    model, ids = tiny.double(), targets(3, 20)
    chunked_nats(model.lm_head, model.hidden(ids[:, :-1]), ids[:, 1:]).sum.backward()
    got = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    naive_nats(model.lm_head, model.hidden(ids[:, :-1]), ids[:, 1:], None).backward()
    for name, weight in model.named_parameters():
        assert got[name] is not None
        assert weight.grad is not None
        assert_near(got[name], weight.grad, 1e-12)


@pytest.mark.parametrize("split", [[1, 5], [2, 2, 2], [1, 1, 1, 1, 1, 1]])
@pytest.mark.parametrize("masked", [False, True])
def test_any_split_into_micro_batches_gives_the_same_loss_and_gradients(
    tiny: Llama, split: list[int], masked: bool
) -> None:
    model, ids = tiny.double(), targets(6, 15)
    keep = torch.rand(6, 14, generator=torch.Generator().manual_seed(6)) < (0.3 if masked else 2)

    def step(sizes: list[int]) -> tuple[Nats, list[Tensor]]:
        model.zero_grad()
        total = Nats(torch.zeros((), dtype=torch.float64), 0)
        for part, kept in zip(ids.split(sizes), keep.split(sizes), strict=True):
            nats = chunked_nats(model.lm_head, model.hidden(part[:, :-1]), part[:, 1:], kept)
            (nats.sum / int(keep.sum())).backward()
            total += Nats(nats.sum.detach(), nats.count)
        return total, [weight.grad for weight in model.parameters() if weight.grad is not None]

    whole, expected = step([6])
    parts, got = step(split)
    assert parts.count == whole.count == int(keep.sum())
    assert parts.mean == pytest.approx(whole.mean, rel=1e-12)
    for ours, theirs in zip(got, expected, strict=True):
        assert_near(ours, theirs, 1e-10)


def test_tokens_that_are_not_kept_count_for_nothing() -> None:
    head, x, keep = dense(), hidden(), KEEPS["some"]
    assert keep is not None
    nats = chunked_nats(head, x, targets(), keep)
    nats.sum.backward()
    assert nats.count == int(keep.sum())
    assert float(nats.sum.detach()) == pytest.approx(float(token_nats(head, x, targets())[keep].sum()), rel=1e-6)
    assert x.grad is not None
    assert not x.grad[~keep].any()
    assert x.grad[keep].abs().amax(-1).gt(0).all()


def test_a_batch_without_kept_targets_is_zero_with_zero_gradients() -> None:
    head, x = dense(), hidden()
    nats = chunked_nats(head, x, targets(), torch.zeros(B, T, dtype=torch.bool))
    nats.sum.backward()
    assert (float(nats.sum.detach()), nats.count) == (0.0, 0)
    assert x.grad is not None
    assert head.weight.grad is not None
    assert not x.grad.any()
    assert not head.weight.grad.any()


@pytest.mark.parametrize(("vocab", "expected"), [(32_000, 10.37349), (128_256, 11.76178)])
def test_equal_logits_cost_ln_v(vocab: int, expected: float) -> None:
    head = nn.Linear(D, vocab, bias=False).requires_grad_(requires_grad=False)
    nn.init.zeros_(head.weight)
    nats = chunked_nats(head, hidden(), targets(vocab=vocab))
    assert nats.mean == pytest.approx(math.log(vocab), abs=1e-6)
    assert nats.mean == pytest.approx(expected, abs=1e-5)


def test_the_same_shift_of_every_logit_changes_nothing() -> None:
    head, x = dense().double(), hidden(torch.float64)
    before = chunked_nats(head, x, targets()).sum
    with torch.no_grad():
        head.weight += 100 * torch.randn(1, D, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    assert_near(chunked_nats(head, x, targets()).sum, before, 1e-10)


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_enormous_logits_stay_finite(size: float) -> None:
    head, x = dense(), (size * hidden()).detach().requires_grad_()
    nats = chunked_nats(head, x, targets())
    nats.sum.backward()
    assert_near(nats.sum, naive_nats(head, x, targets(), None), 1e-6)
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_gradient_of_a_rows_logits_sums_to_zero() -> None:
    head = dense()
    chunked_nats(head, hidden()[:1, :1], targets()[:1, :1]).sum.backward()
    assert head.weight.grad is not None
    assert float(head.weight.grad.sum(0).abs().max()) < 1e-6 * float(head.weight.grad.abs().max())


def test_each_tokens_nats_are_minus_the_log_of_its_probability(chunk_tokens: int) -> None:
    head, x = dense(), hidden()
    nats_BT = token_nats(head, x, targets())
    expected = -head(x).softmax(-1).log().gather(-1, targets()[..., None])[..., 0]
    assert nats_BT.dtype == torch.float32
    assert not nats_BT.requires_grad
    torch.testing.assert_close(nats_BT, expected.detach(), rtol=1e-5, atol=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    head, x = dense().bfloat16(), hidden(torch.bfloat16)
    scores = head(x).float()
    expected = F.cross_entropy(scores.flatten(0, 1), targets().flatten(), reduction="sum")
    assert_near(chunked_nats(head, x, targets()).sum, expected, 1e-6)
    assert_near(token_nats(head, x, targets()).sum(), expected, 1e-6)


class _Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def products(head: nn.Linear, hidden_BTD: Tensor) -> int:
    """Products with the head's weight that a loss and its backward pass cost: 1 forward, 1 for each gradient."""
    with _Products() as counter:
        nats = chunked_nats(head, hidden_BTD, targets())
        if nats.sum.requires_grad:
            nats.sum.backward()
    return counter.count


def test_only_the_gradients_that_are_needed_are_formed() -> None:
    trainable, frozen = dense(), dense().requires_grad_(requires_grad=False)
    assert products(trainable, hidden()) == 3
    assert products(trainable, hidden().detach()) == 2
    assert products(frozen, hidden()) == 2
    assert products(frozen, hidden().detach()) == 1
    with torch.no_grad():
        assert products(trainable, hidden().detach()) == 1
    assert frozen.weight.grad is None


def test_the_loss_never_holds_the_logits_of_all_tokens() -> None:
    tokens, vocab = 2048, 32_768
    head, x, ids = dense(vocab), hidden(rows=1, tokens=tokens), targets(1, tokens, vocab)
    logits_bytes = 4 * tokens * vocab
    assert allocated_peak(lambda: naive_nats(head, x, ids, None).backward()) > logits_bytes
    head.zero_grad()
    assert allocated_peak(lambda: chunked_nats(head, x, ids).sum.backward()) < 0.5 * logits_bytes
    assert allocated_peak(lambda: token_nats(head, x, ids)) < 0.5 * logits_bytes


def test_nats_add_up_and_are_averaged_last() -> None:
    total = Nats(torch.tensor(3.0), 2) + Nats(torch.tensor(1.0), 6)
    assert (float(total.sum), total.count, total.mean) == (4.0, 8, 0.5)
