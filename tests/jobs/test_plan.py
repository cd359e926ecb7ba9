import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from puna.arch.presets import PRESETS
from puna.errors import UsageError
from puna.jobs.plan import PlansResult, plan
from puna.jobs.plan_table import card_rows, memory_bars, plan_rows
from puna.report.numbers import human_bytes

PROMISED = {
    "parameters",
    "embedding_parameters",
    "trainable_parameters",
    "lora",
    "bytes",
    "kv_cache_bytes_per_token",
    "flops",
    "fits",
    "settings",
}
TERMS = {"weights", "adapters", "gradients", "optimizer", "activations", "logits", "runtime", "total"}


def test_the_result_holds_every_promised_key():
    printed = json.loads(json.dumps(asdict(plan("llama-3-8b", train="lora"))))
    assert printed.keys() >= PROMISED
    assert printed["lora"].keys() == {"method", "rank", "parameters", "frozen", "percent", "per_module"}
    assert printed["bytes"].keys() >= TERMS
    assert printed["flops"].keys() == {"forward_per_token", "train_per_token"}
    assert printed["fits"] is None


def test_8b_is_counted_exactly():
    result = plan("llama-3-8b", train="lora", rank=16)
    assert (result.parameters, result.lora.parameters) == (8_030_261_248, 41_943_040)
    assert result.trainable_parameters == result.lora.parameters
    assert round(result.lora.percent, 4) == 0.5223
    assert sum(result.lora.per_module.values()) == 1_310_720
    assert plan("llama-3-8b", rank=8, targets="q_proj,v_proj").lora.parameters == 3_407_872
    assert plan("llama-3-8b").kv_cache_bytes_per_token == 131_072


def test_training_flops_are_those_of_the_planned_training():
    assert round(plan("llama-3-8b", train="full").flops.train_per_token / 1e9, 1) == 46.6
    assert plan("llama-3-8b").flops == plan("llama-3-8b", train="full").flops
    assert round(plan("llama-3-8b", train="lora").flops.train_per_token / 1e9, 2) == 31.88


def test_full_training_trains_every_parameter_in_float32():
    result = plan("small", train="full", batch=8)
    assert result.trainable_parameters == result.parameters
    assert result.settings.base == "float32"
    assert result.bytes.weights == 4 * result.parameters


def test_several_models_give_plans():
    result = plan(["llama-1-7b", "llama-2-70b", "llama-3-8b"])
    assert isinstance(result, PlansResult)
    assert [each.traits.kv_heads for each in result.plans] == [32, 8, 8]
    assert [each.traits.training_tokens for each in result.plans] == [1e12, 2e12, 15e12]


def test_one_model_in_a_list_is_one_plan():
    assert plan(["tiny"]) == plan("tiny")


def test_a_config_is_a_model():
    config = PRESETS["tiny"].config
    assert plan(config).bytes == plan("tiny").bytes
    assert plan(config).traits.generation is None


def test_a_config_file_is_a_model(tmp_path):
    path = tmp_path / "config.json"
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14_336,
        "max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    path.write_text(json.dumps(fields), encoding="utf-8")
    assert plan(path).parameters == plan(str(path)).parameters == 8_030_261_248


@pytest.mark.parametrize(("memory", "layers"), [("8GB", 26), ("12GB", 16), ("14GB", 12), ("16GB", 7), ("18GB", 3)])
def test_a_memory_to_fit_names_what_changed(memory, layers):
    result = plan("llama-3-8b", train="lora", fit=memory)
    assert result.fits
    assert result.bytes.total <= result.memory_bytes == int(memory[:-2]) * 10**9
    words = (f"streamed layers: {layers} of 32", "embedding: in host memory")
    assert result.changed == ("checkpointing: off -> on", *words)
    assert (result.settings.streamed_layers, result.settings.streamed_embedding) == (layers, True)
    assert result.bus_bytes_per_step == 2 * (layers - 2) * 436_207_616
    rows = dict(plan_rows([result]))
    assert "as asked needs 29.6 GB: too much; checkpointing: off -> on needs 19.1 GB: too much" in rows["because"][0]
    assert f"copies {human_bytes(result.bus_bytes_per_step)} over the bus a step: fits" in rows["because"][0]
    assert "base: bfloat16 -> nf4" in rows["instead"][0]


def test_nf4_fits_14_gb_with_every_layer_resident():
    result = plan("llama-3-8b", train="lora", base="nf4", fit="14GB")
    assert result.changed == ("checkpointing: off -> on",)
    assert result.bus_bytes_per_step == 0


@pytest.mark.parametrize(
    ("method", "trained", "frozen"),
    [
        ("lora", 41_943_040, 0),
        ("rslora", 41_943_040, 0),
        ("dora", 41_943_040 + 32 * 43_008, 32 * 43_008),
        ("pissa", 41_943_040, 41_943_040),
    ],
)
def test_adapters_of_each_kind_are_counted(method, trained, frozen):
    result = plan("llama-3-8b", train="lora", method=method)
    assert (result.lora.parameters, result.lora.frozen, result.trainable_parameters) == (trained, frozen, trained)
    assert result.bytes.adapters == 4 * (trained + frozen)
    assert result.bytes.optimizer == 8 * trained


@pytest.mark.parametrize("wish", [{}, {"train": "lora"}, {"train": "full"}, {"train": "lora", "fit": "8GB"}])
def test_bars_are_aligned_in_proportion_and_narrow(wish):
    lines = memory_bars(plan("llama-3-8b", **wish))
    assert len({line.index("%") for line in lines}) == 1
    assert len({line.index("#") for line in lines}) == 1
    assert max(map(len, lines)) <= 100
    lengths = [line.count("#") for line in lines]
    assert lengths[-1] == max(lengths) == 60
    assert abs(sum(lengths[:-1]) - 60) < len(lines)


def test_what_does_not_fit_names_the_smallest_memory_that_would():
    result = plan("llama-3-70b", train="lora", fit="4GB")
    assert result.fits is False
    assert result.smallest_bytes == result.bytes.total
    assert plan("llama-3-70b", train="lora", fit=result.smallest_bytes).fits
    assert not plan("llama-3-70b", train="lora", fit=result.smallest_bytes - 1).fits


def test_cards_are_one_table():
    result = plan("llama-3-8b", train="lora", cards=True)
    header, *lines = card_rows(result)
    assert len(lines) == len(result.cards) > 8
    assert {len(line) for line in lines} == {len(header)}
    assert plan("llama-3-8b", train="full", cards=True).cards[-1].fits


def test_the_table_for_people_has_a_cell_for_each_model():
    plans = plan(["llama-1-7b", "llama-3-8b"], train="lora", fit="24GB").plans
    rows = dict(plan_rows(plans))
    assert rows["kv heads"] == ("32", "8")
    assert rows["parameters"] == ("6,738,415,616", "8,030,261,248")
    assert rows["training tokens"] == ("1T", "15T")
    assert rows["weights"][1] == "16.06 GB (14.96 GiB)"
    assert rows["fits"] == ("yes with checkpointing: off -> on",) * 2
    assert all(len(cells) == 2 for cells in rows.values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": "lama-3-8b"},
        {"models": []},
        {"models": "tiny", "seq": 257},
        {"models": "tiny", "train": "half"},
        {"models": "tiny", "train": "full", "base": "nf4"},
        {"models": "tiny", "targets": "q_porj"},
        {"models": "tiny", "rank": 0},
        {"models": "tiny", "method": "dorra"},
        {"models": "tiny", "batch": 0},
        {"models": "tiny", "fit": "much"},
    ],
)
def test_a_wrong_wish_is_refused_with_a_hint(wrong):
    with pytest.raises(UsageError) as error:
        plan(**wrong)
    assert error.value.hint


def test_planning_imports_no_torch():
    code = "import sys, puna.jobs.plan, puna.jobs.plan_table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("given", [{"train": "lora"}, {"base": "nf4"}, {"base": "int8"}])
def test_what_no_variant_can_be_is_not_planned(given) -> None:
    with pytest.raises(UsageError, match="transformer-2017: expected a Llama, got a variant"):
        plan("transformer-2017", **given)
    assert plan("transformer-2017", train="full").traits.exchanged
