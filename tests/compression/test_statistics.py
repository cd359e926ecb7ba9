"""Calibration statistics: the Gram of what each Linear reads, once for each distinct input, and nothing left behind."""

import pytest
import torch
from torch import Tensor, nn

from puna.compression.statistics import collect_statistics
from puna.errors import BadData
from puna.model.llama import Llama
from puna.model.surgery import named_linears


def windows(*shape: int) -> Tensor:
    return torch.randint(0, 512, shape, generator=torch.Generator().manual_seed(0))


def inputs_by_path(model: Llama, ids: Tensor) -> dict[str, Tensor]:
    """What every Linear reads, (d_in, tokens), kept whole by hooks of the test's own."""
    kept: dict[str, Tensor] = {}

    def keep(path: str) -> object:
        return lambda _, inputs: kept.__setitem__(path, inputs[0].flatten(0, -2).T.clone())

    handles = [linear.register_forward_pre_hook(keep(path)) for path, linear in named_linears(model)]
    with torch.no_grad():
        model.hidden(ids)
    for handle in handles:
        handle.remove()
    return kept


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_each_gram_is_x_times_x_transposed_of_what_its_linear_reads(tiny: Llama) -> None:
    model, ids = tiny.double(), windows(6, 20)
    statistics = collect_statistics(model, ids.split(2))
    assert statistics.tokens == 120
    expected = inputs_by_path(model, ids)
    assert set(statistics.grams) == set(expected)
    for path, x in expected.items():
        gram = statistics.grams[path]
        assert gram.dtype == torch.float64
        assert float((gram - x @ x.T).abs().max() / gram.abs().max()) < 1e-10


def test_chunks_of_float32_sums_add_up_in_float64(tiny: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = windows(2, 100)
    whole = collect_statistics(tiny, [ids]).grams
    monkeypatch.setattr("puna.compression.statistics._CHUNK_TOKENS", 7)
    chunked = collect_statistics(tiny, [ids]).grams
    for path, gram in whole.items():
        assert gram.dtype == torch.float64
        assert float((chunked[path] - gram).abs().max() / gram.abs().max()) < 1e-6


def test_linears_that_share_an_input_share_its_gram(tiny: Llama) -> None:
    grams = collect_statistics(tiny, [windows(1, 8)]).grams
    assert grams["layers.0.self_attn.q_proj"] is grams["layers.0.self_attn.v_proj"]
    assert grams["layers.1.mlp.gate_proj"] is grams["layers.1.mlp.up_proj"]
    assert len({id(gram) for gram in grams.values()}) == 4 * tiny.config.n_layers


def test_statistics_count_every_token_under_autograd_too(tiny: Llama) -> None:
    with torch.enable_grad():
        statistics = collect_statistics(tiny, [windows(2, 8)])
    assert all(gram.diagonal().sum() > 0 for gram in statistics.grams.values())
    assert not any(gram.requires_grad for gram in statistics.grams.values())


def test_no_hook_stays_behind_even_when_the_windows_fail(tiny: Llama) -> None:
    def failing() -> object:
        yield windows(1, 8)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        collect_statistics(tiny, failing())
    assert hooks(tiny) == 0
    collect_statistics(tiny, [windows(1, 8)])
    assert hooks(tiny) == 0


def test_no_window_and_activations_that_are_not_finite_are_errors(tiny: Llama) -> None:
    with pytest.raises(BadData, match="at least one window"):
        collect_statistics(tiny, [])
    with torch.no_grad():
        tiny.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(BadData, match=r"finite inputs of layers\.1\.mlp\.down_proj"):
        collect_statistics(tiny, [windows(1, 8)])
