"""Probes against what they say they measure."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from puna.arch.attention_pattern import SlidingWindow
from puna.lab import probes
from puna.lab.probes import (
    attention_milliseconds,
    dead_units,
    gradient_norms,
    nats_by_length,
    norm_microseconds,
    score_statistics,
)
from puna.model.attention import attend_causally
from puna.model.batch import Batch
from puna.model.init import initialise
from puna.model.llama import Llama

IDS = torch.randint(0, 512, (2, 33), generator=torch.Generator().manual_seed(2))
BATCH = Batch(ids_BT=IDS[:, :-1], targets_BT=IDS[:, 1:])


def test_gradient_norms_are_those_of_the_mean_loss_by_layer(tiny: Llama) -> None:
    found = gradient_norms(tiny, [BATCH])["gradient_norm_by_layer"]
    F.cross_entropy(tiny(BATCH.ids_BT).flatten(0, 1), BATCH.targets_BT.flatten()).backward()
    for layer, block in enumerate(tiny.layers):
        expected = torch.cat([weight.grad.flatten() for weight in block.parameters()]).norm()
        assert found[layer] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"score_scale": "1"}, {"pattern": SlidingWindow(window=5)}, {"norm_placement": "post"}]
)
def test_score_statistics_are_those_of_each_query_over_what_it_sees(build_llama, changes) -> None:
    model = build_llama(n_layers=1, **changes)
    block, seen = model.layers[0], []
    x = model.embed_tokens(BATCH.ids_BT)
    rotate = model.position.rotation(torch.arange(32)[None])
    block(x, rotate, lambda q, k, v, sink: seen.append((q, k)) or attend_causally(q, k, v), None)
    q, k = seen[0]
    scores = q @ k.repeat_interleave(2, dim=1).transpose(-1, -2) * model.config.score_factor
    window = changes["pattern"].window if "pattern" in changes else 32
    variances, entropies = [], []
    for t in range(1, 32):
        part = scores.detach()[:, :, t, max(0, t - window + 1) : t + 1].double()
        variances.append(part.var(-1, correction=0))
        weights = part.softmax(-1)
        entropies.append(torch.special.entr(weights).sum(-1) / math.log(part.shape[-1]))
    found = score_statistics(model, [BATCH])
    assert found["score_variance"] == pytest.approx(float(torch.stack(variances).mean()), rel=1e-4)
    assert found["attention_entropy"] == pytest.approx(float(torch.stack(entropies).mean()), rel=1e-4)


def test_units_without_a_slope_at_any_token_are_dead(build_llama) -> None:
    model = build_llama(ffn="relu", mlp_bias=True)
    with torch.no_grad():
        model.layers[0].mlp.up_proj.bias[:44] = -1e4
    found = dead_units(model, [BATCH])
    assert found["dead_units_by_layer"] == [pytest.approx(0.25, abs=0.02), pytest.approx(0.0, abs=0.02)]
    assert dead_units(build_llama(ffn="swish"), [BATCH])["dead_units"] == 0


def test_nats_by_length_are_means_over_places(build_llama) -> None:
    model = build_llama()
    batches = [Batch(ids_BT=row[:, :-1], targets_BT=row[:, 1:]) for row in IDS.split(1)]
    found = nats_by_length(16, 32, 64)(model, batches)
    ids, targets = BATCH.ids_BT.flatten()[None], BATCH.targets_BT.flatten()[None]
    nats = F.cross_entropy(model(ids)[0], targets[0], reduction="none").detach()
    for name, places in (("nats_to_16", slice(0, 16)), ("nats_to_32", slice(16, 32)), ("nats_to_64", slice(32, 64))):
        assert found[name] == pytest.approx(float(nats[places].mean()), rel=1e-4)
    assert nats_by_length(128, 256)(model, batches) == {}


def test_times_are_above_zero_and_longer_rows_take_longer(tiny_config, monkeypatch) -> None:
    monkeypatch.setattr(probes, "_TIMED", 3)
    monkeypatch.setattr(probes, "_WARM", 1)
    monkeypatch.setattr(probes, "_LENGTHS", (256, 2048))
    model = initialise(Llama(tiny_config), 0)
    assert norm_microseconds(model, [BATCH])["norm_microseconds"] > 0
    found = attention_milliseconds(model, [])
    assert found["attention_milliseconds_2048"] > 4 * found["attention_milliseconds_256"] > 0
    windowed = attention_milliseconds(Llama(replace(tiny_config, pattern=SlidingWindow(window=64))), [])
    assert windowed["attention_milliseconds_2048"] < found["attention_milliseconds_2048"]
