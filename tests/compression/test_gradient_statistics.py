"""What the loss feels at each output: the Gram of its gradients, token by token, clipped, without a window's ends."""

import weakref

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from puna.compression.groups import group_members, linear_groups
from puna.compression.statistics import collect_statistics, collect_two_sided_statistics
from puna.errors import BadData, UsageError
from puna.model.linears.derived import value_of
from puna.model.llama import Llama
from puna.model.loss import chunked_nats
from puna.model.surgery import get_linear, named_linears

QKV, MLP = "layers.{}.self_attn.q_proj+k_proj+v_proj", "layers.{}.mlp.gate_proj+up_proj"


def windows(*shape: int) -> Tensor:
    return torch.randint(0, 512, shape, generator=torch.Generator().manual_seed(0))


def output_gradients(model: Llama, ids: Tensor) -> dict[str, Tensor]:
    """d loss / d y of every Linear on the text's own labels, (B, T, d_out): by moving each output, not by hooks."""
    moves: dict[str, Tensor] = {}
    handles = []
    for path, linear in named_linears(model):
        moves[path] = torch.zeros(*ids.shape, linear.out_features, dtype=torch.float64, requires_grad=True)
        handles.append(linear.register_forward_hook(lambda _, __, y, path=path: y + moves[path]))
    with pytest.MonkeyPatch.context() as patch:  # each Linear by itself, so that its hook is asked
        for module in ("attention", "feed_forward"):
            patch.setattr(
                f"puna.model.{module}.project_together", lambda x, *ls: tuple(linear(value_of(x)) for linear in ls)
            )
        logits = model(ids)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    for handle in handles:
        handle.remove()
    return {path: move.grad for path, move in moves.items()}


def expected_gram(gradient: Tensor) -> Tensor:
    """Of one window's (T, d_out): an eighth of each end left out, lengths cut at their 99th percentile."""
    edge = len(gradient) // 8
    middle = gradient[edge : len(gradient) - edge]
    lengths = middle.norm(dim=1)
    clipped = middle * (lengths.quantile(0.99) / lengths).clamp(max=1)[:, None]
    return clipped.T @ clipped


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def test_each_gradient_gram_is_g_times_g_transposed_of_its_stacked_output(tiny: Llama) -> None:
    model, ids = tiny.double(), windows(3, 40)
    gradients = output_gradients(model, ids)
    statistics = collect_two_sided_statistics(model, ids.split(2), labels="data")
    for name, paths in linear_groups(model.config).items():
        stacked = torch.cat([gradients[path] for path in paths], dim=-1)
        expected = sum(expected_gram(window) for window in stacked)
        assert statistics.gradients[name].dtype == torch.float64
        assert relative(statistics.gradients[name], expected) < 1e-10
        assert relative(statistics.gradients[name], stacked.flatten(0, 1).T @ stacked.flatten(0, 1)) > 1e-2
    assert (statistics.tokens, statistics.gradient_tokens, statistics.labels) == (120, 90, "data")


def test_members_have_the_diagonal_blocks_of_their_groups_gram(tiny: Llama) -> None:
    gradients = collect_two_sided_statistics(tiny, [windows(2, 24)]).gradients
    assert set(gradients) == {path for path, _ in named_linears(tiny)} | set(linear_groups(tiny.config))
    for name in (QKV.format(1), MLP.format(0)):
        start = 0
        for path in group_members(name):
            size = get_linear(tiny, path).out_features
            block = gradients[name][start : start + size, start : start + size]
            assert torch.equal(gradients[path], block)
            assert float(block.diagonal().min()) > 0
            start += size
        assert start == len(gradients[name])
    q, k = group_members(QKV.format(0))[:2]
    across = gradients[QKV.format(0)][: len(gradients[q]), len(gradients[q]) :][:, : len(gradients[k])]
    assert float(across.abs().max()) > 0  # what the members' own Grams do not say


def test_the_inputs_are_those_of_a_forward_pass_alone(tiny: Llama) -> None:
    ids = windows(4, 24)
    alone, both = collect_statistics(tiny, ids.split(2)), collect_two_sided_statistics(tiny, ids.split(2))
    assert both.tokens == alone.tokens == 96
    for path, gram in alone.grams.items():
        assert relative(both.grams[path], gram) < 1e-6
        assert relative(both.magnitudes[path], alone.magnitudes[path]) < 1e-6


def test_a_window_says_the_same_whatever_it_is_batched_with(tiny: Llama) -> None:
    model, ids = tiny.double(), windows(4, 32)
    whole, parts = (collect_two_sided_statistics(model, ids.split(n), labels="data").gradients for n in (4, 1))
    assert max(relative(parts[name], gram) for name, gram in whole.items()) < 1e-10


def test_sampled_labels_are_the_models_own_and_drawn_by_the_seed(tiny: Llama) -> None:
    ids, name = windows(2, 32), QKV.format(0)
    first, again, other, data = (
        collect_two_sided_statistics(tiny, [ids], labels=labels, seed=seed)
        for labels, seed in (("sampled", 5), ("sampled", 5), ("sampled", 6), ("data", 5))
    )
    assert (first.labels, first.seed) == ("sampled", 5)
    assert torch.equal(first.gradients[name], again.gradients[name])
    assert not torch.equal(first.gradients[name], other.gradients[name])
    assert not torch.equal(first.gradients[name], data.gradients[name])


def test_a_certain_model_feels_nothing_on_its_own_labels_and_much_on_the_texts(tiny: Llama) -> None:
    with torch.no_grad():
        tiny.norm.weight.mul_(200)  # its predictions are all but certain: sampled labels are those
    ids = windows(2, 32)
    own, text = (collect_two_sided_statistics(tiny, [ids], labels=labels).gradients for labels in ("sampled", "data"))
    name = "layers.1.mlp.down_proj"
    assert float(own[name].diagonal().sum()) < 1e-2 * float(text[name].diagonal().sum())


def test_no_gradient_of_a_weight_is_formed_and_the_model_is_left_as_it_was(tiny: Llama) -> None:
    kinds = [type(linear) for _, linear in named_linears(tiny)]
    tiny.layers[0].mlp.up_proj.weight.requires_grad_(False)
    learning = [p.requires_grad for p in tiny.parameters()]
    before, ids = [p.detach().clone() for p in tiny.parameters()], windows(1, 16)

    def failing() -> object:
        yield ids
        raise OSError("disk gone")

    collect_two_sided_statistics(tiny, [ids])
    with pytest.raises(OSError, match="disk gone"):
        collect_two_sided_statistics(tiny, failing())
    assert all(p.grad is None for p in tiny.parameters())
    assert [p.requires_grad for p in tiny.parameters()] == learning
    assert [type(linear) for _, linear in named_linears(tiny)] == kinds
    assert all(torch.equal(p, was) for p, was in zip(tiny.parameters(), before, strict=True))


def test_nothing_of_a_windows_graph_outlives_it(tiny: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[Tensor]] = []

    def watching(head: object, hidden: Tensor, *rest: Tensor) -> object:
        kept.append(weakref.ref(hidden))
        return chunked_nats(head, hidden, *rest)

    monkeypatch.setattr("puna.compression.statistics.chunked_nats", watching)

    def checked() -> object:
        for _ in range(3):
            assert all(hidden() is None for hidden in kept)
            yield windows(1, 16)

    collect_two_sided_statistics(tiny, checked())
    assert len(kept) == 3


def test_what_cannot_be_used_is_said(tiny: Llama) -> None:
    with pytest.raises(BadData, match="at least one window"):
        collect_two_sided_statistics(tiny, [])
    with pytest.raises(UsageError, match="unknown labels 'sample'") as error:
        collect_two_sided_statistics(tiny, [windows(1, 8)], labels="sample")
    assert "sampled" in error.value.hint
    with torch.no_grad():
        tiny.norm.weight[0] = float("inf")  # after the last Linear: its inputs are finite, its gradients are not
    with pytest.raises(BadData, match="finite gradients at"):
        collect_two_sided_statistics(tiny, [windows(1, 8)], labels="data")
