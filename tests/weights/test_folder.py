"""Model folders: save then load is the same model, transformers and we read each other's, and lies are refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from puna.adaptation.targets import attach
from puna.arch.attention_pattern import SlidingWindow
from puna.arch.modules import LINEARS
from puna.arch.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from puna.arch.rounding import ROUNDINGS
from puna.compression.residual import correct
from puna.compression.rounding import round_linears
from puna.compression.sizes import stored_parameters
from puna.errors import CheckpointMismatch, FormatError, UsageError
from puna.files import MANIFEST
from puna.model.init import initialise
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.int8 import Int8WeightLinear
from puna.model.linears.kind import dense_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.norms import running_statistics
from puna.model.surgery import get_linear, named_linears, replace_linear, replace_linears
from puna.weights.conversion import convert_checkpoint
from puna.weights.folder import save_folder
from puna.weights.headers import read_header
from puna.weights.loading import load_llama, weights_sha256
from tests.fused import fuse
from tests.variants import PLAIN_VARIANTS, VARIANTS

T32 = 1e-5
SHAPES = {
    "grouped": {},
    "multi-head, untied": {"n_kv_heads": 4, "tied_embeddings": False},
    "multi-query, wide heads": {"n_kv_heads": 1, "head_dim": 24},
    "llama3 scaling": {"rope_scaling": Llama3Scaling(factor=8.0, original_max_seq_len=64), "rope_theta": 5e5},
    "yarn scaling": {"rope_scaling": YarnScaling(factor=4.0, original_max_seq_len=64), "n_kv_heads": 1},
    "yarn with its own settings": {
        "rope_scaling": YarnScaling(
            factor=8.0, original_max_seq_len=32, attention_factor=1.5, beta_fast=16.0, beta_slow=2.0
        )
    },
    "linear scaling": {"rope_scaling": LinearScaling(factor=4.0), "tied_embeddings": False},
}
IDS = torch.randint(0, 512, (2, 100), generator=torch.Generator().manual_seed(0))


def assert_equal_logits(ours, theirs, tolerance=T32):
    with torch.no_grad():
        a, b = ours(IDS), theirs(IDS)
    b = b if isinstance(b, torch.Tensor) else b.logits
    assert (a - b).abs().max() <= tolerance * b.abs().max()


def greedy(forward, prompt, tokens):
    ids = prompt
    for _ in range(tokens):
        with torch.no_grad():
            ids = torch.cat([ids, forward(ids)[:, -1:].argmax(-1)], dim=1)
    return ids[0].tolist()


def factor(model, rank=5):
    def build(path, old):
        if path.endswith("up_proj"):
            return Int8WeightLinear.from_dense(dense_weight(old))
        return LowRankLinear(old.weight.detach()[:, :rank], old.weight.detach()[:rank])

    replace_linears(model, ("q_proj", "up_proj", "down_proj"), build)
    return model


def fuse_and_round(model):
    fuse(model)
    replace_linears(model, ("down_proj",), lambda _, old: Int8WeightLinear.from_dense(dense_weight(old)))
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_then_load_is_the_same_model_bit_for_bit(build_llama, tmp_path, shape, dtype):
    model = build_llama(**SHAPES[shape]).to(dtype)
    save_folder(model, tmp_path / "a")
    loaded = load_llama(tmp_path / "a", dtype=dtype)
    assert loaded.config == model.config
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) is model.config.tied_embeddings
    assert loaded.position.frequencies_P.dtype == torch.float32


def see_by_pattern(model):
    pattern = SlidingWindow(window=8, sinks=2, learnable_sink=True)
    return initialise(Llama(replace(model.config, pattern=pattern)), seed=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_loaded_as_it_was_saved(build_llama, tmp_path, name):
    model = build_llama(**VARIANTS[name])
    for statistic in running_statistics(model).values():
        statistic.add_(torch.rand(statistic.shape))
    save_folder(model, tmp_path / "a")
    loaded = load_llama(tmp_path / "a")
    assert torch.equal(loaded(IDS), model(IDS))
    save_folder(loaded, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("name", PLAIN_VARIANTS)
def test_transformers_loads_the_variants_that_it_computes(build_llama, tmp_path, name):
    model = build_llama(**PLAIN_VARIANTS[name])
    save_folder(model, tmp_path / "a")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal_logits(model, theirs)


@pytest.mark.parametrize("change", [lambda model: model, factor, fuse_and_round, see_by_pattern])
def test_load_then_save_writes_the_same_bytes(tiny, tmp_path, change):
    save_folder(change(tiny), tmp_path / "a")
    save_folder(load_llama(tmp_path / "a"), tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_loads_our_folder_with_equal_logits(build_llama, tmp_path, shape):
    model = build_llama(**SHAPES[shape])
    save_folder(model, tmp_path / "a", record={"from": "a test"})
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal_logits(model, theirs)
    assert greedy(model, IDS[:1, :8], 64) == greedy(lambda ids: theirs(ids).logits, IDS[:1, :8], 64)


@pytest.mark.parametrize("shape", ["grouped", "linear scaling"])
def test_transformers_loads_our_shards(build_llama, tmp_path, shape):
    model = build_llama(**SHAPES[shape])
    save_folder(model, tmp_path / "a", shard_bytes=50_000)
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 5
    assert_equal_logits(model, LlamaForCausalLM.from_pretrained(tmp_path / "a"))
    assert_equal_logits(load_llama(tmp_path / "a"), model, tolerance=0)


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("old_keys", [True, False])
def test_we_load_transformers_folders(tmp_path, shard, tied, old_keys):
    rope = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 32, "rope_theta": 50_000.0}
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        rope_parameters=rope,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    if old_keys:
        values = json.loads((tmp_path / "config.json").read_text())
        scaling = values.pop("rope_parameters")
        values["rope_theta"] = scaling.pop("rope_theta")
        (tmp_path / "config.json").write_text(json.dumps(values | {"rope_scaling": scaling}))
    assert (tmp_path / "model.safetensors").exists() is (shard == "5GB")
    ours = load_llama(tmp_path)
    assert_equal_logits(ours, theirs)
    state = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, state[name if name.startswith("lm_head") else f"model.{name}"])


def test_other_linears_are_stored_and_read_as_what_they_are(tiny, tmp_path):
    model = factor(tiny)
    save_folder(model, tmp_path / "a", record={"method": "svd"})
    loaded = load_llama(tmp_path / "a")
    for name in LINEARS:
        path = f"layers.1.{'mlp' if name in LINEARS[4:] else 'self_attn'}.{name}"
        assert type(get_linear(loaded, path)) is type(get_linear(model, path))
    assert_equal_logits(loaded, model, tolerance=0)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (config["model_type"], config["puna"]["compression"]) == ("puna", {"method": "svd"})
    header = read_header(tmp_path / "a")
    assert header.format == "puna"
    assert header.parameters == sum(
        tensor.numel() for name, tensor in dict(model.state_dict()).items() if name != "lm_head.weight"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_factor_is_stored_once_and_read_as_shared(tiny, tmp_path, dtype):
    model = fuse_and_round(tiny.to(dtype))
    save_folder(model, tmp_path / "a")
    loaded = load_llama(tmp_path / "a", dtype=dtype)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    for block in loaded.layers:
        attention, mlp = block.self_attn, block.mlp
        assert attention.q_proj.V is attention.k_proj.V is attention.v_proj.V
        assert mlp.gate_proj.V is mlp.up_proj.V
    assert_equal_logits(loaded, model, tolerance=0)
    numbers = sum(weight.numel() for weight in model.parameters())
    codes = sum(buffer.numel() for _, linear in named_linears(model) for buffer in linear.buffers())
    assert read_header(tmp_path / "a").parameters == numbers + codes
    assert len([name for name in load_file(tmp_path / "a" / "model.safetensors") if name.endswith(".V")]) == 4


def test_what_shares_a_factor_with_none_is_plain_low_rank(tiny, tmp_path):
    model = fuse(tiny)
    replace_linears(model, ("gate_proj", "v_proj"), lambda _, old: Int8WeightLinear.from_dense(dense_weight(old)))
    save_folder(model, tmp_path / "a")
    listed = json.loads((tmp_path / "a" / "config.json").read_text())["puna"]["linears"]
    kinds = {entry.get("path", " ".join(entry.get("paths", ()))): entry["kind"] for entry in listed}
    assert kinds["layers.1.mlp.up_proj"] == "low_rank"
    assert kinds["layers.1.self_attn.q_proj layers.1.self_attn.k_proj"] == "fused"
    assert_equal_logits(load_llama(tmp_path / "a"), model, tolerance=0)


def test_a_group_listed_without_its_tensors_or_the_reverse_is_refused(tiny, tmp_path):
    save_folder(fuse(tiny), tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    path, names = tmp_path / "a" / "config.json", [f"layers.0.self_attn.{name}_proj" for name in "qkv"]
    config = json.loads(path.read_text())
    group, *others = config["puna"]["linears"]
    assert group == {"paths": names, "kind": "fused", "rank": 5}
    plain = [{"path": name, "kind": "low_rank", "rank": 5} for name in names]
    wrong = {
        r"k_proj\.V": plain,
        r"v_proj\.weight": [{**group, "paths": names[:2]}],
        r"q_proj\.U": [{**group, "rank": 4}],
        r"layers\.9": [group, {**group, "paths": [name.replace("0", "9") for name in names]}],
        r"q_proj\.weight": [],
    }
    for said, listed in wrong.items():
        config["puna"]["linears"] = [*listed, *others]
        path.write_text(json.dumps(config))
        with pytest.raises(FormatError, match=said):
            load_llama(tmp_path / "a")
    config["puna"]["linears"] = [group, *others]
    path.write_text(json.dumps(config))
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    for name, said in (
        (f"puna.{names[0]}.V", r"q_proj\.V.*got nothing"),
        (f"puna.{names[2]}.U", r"v_proj\.U.*nothing"),
    ):
        save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "a" / "model.safetensors")
        with pytest.raises(FormatError, match=said):
            load_llama(tmp_path / "a")
    extra = {f"puna.{names[1]}.V": tensors[f"puna.{names[0]}.V"].clone()}
    save_file(tensors | extra, tmp_path / "a" / "model.safetensors")
    with pytest.raises(FormatError, match=r"k_proj\.V.*no such tensor"):
        load_llama(tmp_path / "a")


def test_half_precision_leaves_codes_and_scales_alone(tiny, tmp_path):
    save_folder(factor(tiny), tmp_path / "a")
    loaded = load_llama(tmp_path / "a", dtype=torch.bfloat16)
    assert get_linear(loaded, "layers.0.mlp.up_proj").scale.dtype == torch.float32
    assert get_linear(loaded, "layers.0.mlp.down_proj").U.dtype == torch.bfloat16
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize("change", [factor, see_by_pattern])
def test_transformers_refuses_a_folder_that_is_no_plain_llama(tiny, tmp_path, change):
    save_folder(change(tiny), tmp_path / "a")
    with pytest.raises((ValueError, KeyError), match="puna"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    _, report = LlamaForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not [name for name in load_file(tmp_path / "a" / "model.safetensors") if not name.startswith("puna.")]
    assert len(report["missing_keys"]) >= len(list(tiny.parameters())) - 1


def test_linears_that_are_listed_without_tensors_are_refused(tiny, tmp_path):
    save_folder(factor(tiny), tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    listed = config["puna"]["linears"]
    for changed in (listed[1:], [*listed, {"path": "layers.0.mlp.gate_proj", "kind": "int8"}],
                    [*listed, {"path": "layers.9.mlp.gate_proj", "kind": "int8"}]):  # fmt: skip
        config["puna"]["linears"] = changed
        (tmp_path / "a" / "config.json").write_text(json.dumps(config))
        with pytest.raises(FormatError):
            load_llama(tmp_path / "a")


def test_a_copy_of_the_tied_head_must_be_the_embedding(tiny, tmp_path):
    save_folder(tiny, tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    path = tmp_path / "a" / "model.safetensors"
    tensors = load_file(path)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, path)
    assert_equal_logits(load_llama(tmp_path / "a"), tiny, tolerance=0)
    head[3, 5] += 1e-6
    save_file(tensors | {"lm_head.weight": head}, path)
    with pytest.raises(FormatError, match=r"lm_head\.weight"):
        load_llama(tmp_path / "a")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(tiny, tmp_path, value):
    with torch.no_grad():
        tiny.layers[1].mlp.up_proj.weight[3, 3] = value
    save_folder(tiny, tmp_path / "a")
    with pytest.raises(FormatError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_llama(tmp_path / "a")


def test_an_attached_adapter_is_not_stored_in_a_model(tiny, tmp_path):
    attach(tiny, LoraSettings(rank=2, alpha=4.0, targets=("q_proj",)), seed=0)
    with pytest.raises(UsageError, match="LoraLinear") as caught:
        save_folder(tiny, tmp_path / "a")
    assert "merge" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_folder_replaces_it_whole(build_llama, tmp_path):
    save_folder(build_llama(0), tmp_path / "a", shard_bytes=50_000)
    first = weights_sha256(tmp_path / "a")
    save_folder(build_llama(1), tmp_path / "a")
    assert_equal_logits(load_llama(tmp_path / "a"), build_llama(1), tolerance=0)
    assert weights_sha256(tmp_path / "a") != first
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_changed_file_in_a_sealed_folder_is_refused(tiny, tmp_path):
    save_folder(tiny, tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_text("{}")
    with pytest.raises(CheckpointMismatch, match="generation_config"):
        load_llama(tmp_path / "a")


def test_loading_draws_no_random_numbers(tiny, tmp_path):
    save_folder(tiny, tmp_path / "a")
    before = torch.get_rng_state()
    load_llama(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("to", ROUNDINGS)
def test_few_bits_come_back_as_they_were_and_become_dense(build_llama, tmp_path, to):
    model = fuse(build_llama(ffn_dim=192))
    o_proj = get_linear(model, "layers.0.self_attn.o_proj")
    replace_linear(model, "layers.0.self_attn.o_proj", correct(dense_weight(o_proj), to, 4, "plain")[0])
    kept = get_linear(model, "layers.0.self_attn.o_proj")
    round_linears(model, to)
    replace_linear(model, "layers.0.self_attn.o_proj", kept)
    save_folder(model, tmp_path / "a")
    loaded = load_llama(tmp_path / "a")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert_equal_logits(loaded, model, tolerance=0)
    gate, up = (get_linear(loaded, f"layers.1.mlp.{name}_proj") for name in ("gate", "up"))
    assert next(gate.V.buffers()) is next(up.V.buffers())
    save_folder(loaded, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    assert read_header(tmp_path / "a").parameters == stored_parameters(model)
    convert_checkpoint(read_header(tmp_path / "a"), tmp_path / "hf", "hf")
    dense = load_llama(tmp_path / "hf")
    for path, linear in named_linears(model):
        assert torch.equal(dense_weight(get_linear(dense, path)), dense_weight(linear)), path


def test_a_block_whose_scale_is_no_number_is_refused(build_llama, tmp_path):
    model = build_llama(ffn_dim=192)
    round_linears(model, "q8_0")
    get_linear(model, "layers.1.mlp.up_proj").codes[3, :2] = torch.tensor([0x00, 0x7E], dtype=torch.uint8)
    save_folder(model, tmp_path / "a")
    with pytest.raises(FormatError, match=r"layers\.1\.mlp\.up_proj"):
        load_llama(tmp_path / "a")
