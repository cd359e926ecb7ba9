"""A step's seconds follow the measured rates, and grow with everything that is done."""

from dataclasses import replace

import pytest

from puna.arch.config import ModelConfig
from puna.arch.modules import linear_shapes
from puna.planning.compute import forward_flops, training_flops
from puna.planning.settings import FullTraining, LoraTraining, Settings
from puna.planning.speed import ATTENTION_SHARE, TRAFFIC, Rates, gradient_costs, product_rate, step_seconds

GFLOPS = {"float32": {"1": 13.6, "16": 46.4, "512": 108.0}, "bfloat16": {"1": 17.0, "16": 17.0, "512": 17.0}}
KINDS = {**GFLOPS, "int8": {"1": 4.0, "16": 3.8, "512": 3.5}}
GRADIENTS = {
    "float32": {"output": 94e9, "input": 95e9, "weight": 130e9},
    "bfloat16": {"output": 17e9, "input": 0.85e9, "weight": 17e9},
}
RATES = Rates(
    flops_by_rows={name: {rows: 1e9 * rate for rows, rate in rates.items()} for name, rates in KINDS.items()},
    gradient_flops=GRADIENTS,
    read_bytes_per_second=25.5e9,
)
MODEL = ModelConfig(
    vocab_size=8192, dim=512, n_layers=8, n_heads=8, n_kv_heads=2, head_dim=64, ffn_dim=1408, max_seq_len=8192
)
FULL = Settings(method=FullTraining(), seq=512, batch=8, base="float32")
LORA = replace(FULL, method=LoraTraining(), own_loop=True)

# vocabulary, batch, length: the median seconds of docs/findings.md 28, at the rates above
MEASURED = (
    (8192, 1, 512, 1.38), (8192, 4, 512, 4.30), (8192, 8, 512, 8.01), (8192, 32, 512, 42.84), (8192, 4, 2048, 19.38),
    (8192, 1, 8192, 41.75), (4096, 8, 512, 9.0), (32_768, 8, 512, 15.18), (131_072, 8, 512, 37.07),
)  # fmt: skip


@pytest.mark.parametrize(("vocabulary", "batch", "seq", "seconds"), MEASURED)
def test_measured_steps_are_met(vocabulary, batch, seq, seconds):
    planned = step_seconds(replace(MODEL, vocab_size=vocabulary), replace(FULL, batch=batch, seq=seq), RATES)
    assert planned == pytest.approx(seconds, rel=0.23)


def test_a_rate_lies_between_those_that_were_measured():
    assert product_rate(RATES, "float32", 4) == pytest.approx((13.6e9 + 46.4e9) / 2)
    assert [product_rate(RATES, "float32", rows) for rows in (1, 16, 512, 9000)] == [13.6e9, 46.4e9, 108e9, 108e9]


def test_a_slow_product_of_the_way_back_counts_and_a_fast_one_does_not():
    assert gradient_costs(RATES, "float32") == (1.0, 1.0)
    assert gradient_costs(RATES, "bfloat16") == pytest.approx((20.0, 1.0))
    even = replace(RATES, gradient_flops={**GRADIENTS, "bfloat16": dict.fromkeys(GRADIENTS["bfloat16"], 17e9)})
    narrow = replace(FULL, autocast=True)
    slow, fast = (step_seconds(MODEL, narrow, rates) for rates in (RATES, even))
    products = forward_flops(MODEL, FULL.seq, FULL.batch)
    assert slow - fast == pytest.approx(19 * (sum(products.linears.values()) + products.head) / 17e9)


def test_an_adapters_outputs_are_made_where_the_bases_product_does_not_form_them():
    methods = LoraTraining(), LoraTraining(starts=True), LoraTraining(magnitudes=True)
    plain, pissa, dora = (step_seconds(MODEL, replace(LORA, method=method), RATES) for method in methods)
    outputs = sum(d_out for d_out, _ in linear_shapes(MODEL).values())
    once = TRAFFIC * 4 * LORA.tokens * MODEL.n_layers * outputs / RATES.read_bytes_per_second
    assert pissa - plain >= 0.99 * once
    assert dora - plain == pytest.approx(2 * once, rel=0.05)


def test_an_int8_base_multiplies_in_int8_only_where_it_is_told_to():
    beside = replace(LORA, base="int8", is_wide=True)
    whole = step_seconds(MODEL, replace(beside, integer_products=True), RATES)
    faster = replace(RATES, flops_by_rows={**RATES.flops_by_rows, "int8": {"1": 1e15, "512": 1e15}})
    assert step_seconds(MODEL, beside, faster) == step_seconds(MODEL, beside, RATES) < whole
    assert step_seconds(MODEL, replace(beside, integer_products=True), faster) < whole


@pytest.mark.parametrize(
    "more",
    [
        {"checkpointing": True},
        {"seq": 1024},
        {"packed": True},
        {"base": "int8", "is_wide": True},
        {"base": "nf4", "is_wide": True},
        {"base": "bfloat16"},
        {"autocast": True},
        {"method": LoraTraining(rank=64)},
        {"method": LoraTraining(magnitudes=True)},
        {"method": LoraTraining(starts=True)},
        {"method": FullTraining()},
    ],
    ids=str,
)
def test_more_work_takes_longer_on_this_machine(more):
    assert step_seconds(MODEL, replace(LORA, **more), RATES) > step_seconds(MODEL, LORA, RATES)


def test_a_machine_that_does_nothing_but_products_takes_the_flops_over_the_rate():
    flat = {name: {"1": 1e9, "512": 1e9} for name in KINDS}
    rates = Rates(flops_by_rows=flat, gradient_flops=GRADIENTS, read_bytes_per_second=1e30)
    for settings in (FULL, LORA, replace(LORA, checkpointing=True)):
        flops = training_flops(MODEL, settings)
        assert flops / 1e9 < step_seconds(MODEL, settings, rates) < flops / ATTENTION_SHARE / 1e9


def test_micro_batches_repeat_all_but_the_update():
    one, three = (step_seconds(MODEL, FULL, RATES, count) for count in (1, 3))
    assert 2.9 * one < three < 3 * one
