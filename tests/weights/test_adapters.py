"""PEFT folders: peft loads ours, we load peft's, and an option that we do not compute is refused by name."""

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from puna.adaptation.merge import merge
from puna.adaptation.targets import adapter_of, attach, attach_adapter, detach
from puna.arch.modules import ADAPTABLE, LINEARS
from puna.compression.rounding import Residual, round_linears
from puna.errors import CheckpointMismatch, FormatError
from puna.files import MANIFEST
from puna.model.linears.adapter import LoraOverride, LoraSettings
from puna.weights.adapters import load_adapter, read_base_path, save_adapter
from puna.weights.folder import save_folder
from puna.weights.loading import load_llama

T32 = 1e-5
IDS = torch.randint(0, 512, (2, 60), generator=torch.Generator().manual_seed(0))
TWO = LoraSettings(rank=3, alpha=7.0, targets=("v_proj", "down_proj"))
ALL = LoraSettings(rank=4, alpha=8.0, targets=LINEARS)
OVERRIDES = (
    LoraOverride(target="down_proj", rank=2, alpha=5.0),
    LoraOverride(target="layers.1.self_attn.v_proj", rank=5),
    LoraOverride(target="v_proj", alpha=3.0),
)
KINDS = {
    "two": TWO,
    "all": ALL,
    "rslora": replace(ALL, rank_stabilized=True),
    "dora": replace(ALL, magnitudes=True),
    "overrides": replace(TWO, overrides=OVERRIDES),
    "stabilised dora with overrides": replace(TWO, overrides=OVERRIDES, rank_stabilized=True, magnitudes=True),
    "tables": replace(ALL, targets=ADAPTABLE),
    "head": replace(TWO, targets=("lm_head",), magnitudes=True),
}


@pytest.fixture
def base(tiny, tmp_path):
    save_folder(tiny, tmp_path / "base")
    return tmp_path / "base"


def trained(model, settings):
    """Attach an adapter whose B is no longer zero."""
    attach(model, settings, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith((".A", ".B")):
                weight.copy_(torch.empty(weight.shape).normal_(generator=generator) * 0.1)
            elif name.endswith(".magnitude"):
                weight.mul_(torch.empty(weight.shape).uniform_(0.5, 2, generator=generator))
    return adapter_of(model, base_sha256="ab" * 32)


def unsealed(folder):
    (folder / MANIFEST).unlink()
    return folder


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_equal_logits(a, b):
    assert (a - b).abs().max() <= T32 * b.abs().max()


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_save_then_load_is_the_same_adapter(tiny, tmp_path, settings):
    adapter = trained(tiny, settings)
    save_adapter(adapter, tmp_path / "a", base="somewhere")
    found = load_adapter(tmp_path / "a")
    assert found.base_sha256 == "ab" * 32
    assert list(found.tensors) == list(adapter.tensors)
    for path, pair in adapter.tensors.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, found.tensors[path], strict=True))
        assert found.settings.rank_of(path) == settings.rank_of(path)
        assert found.settings.scale_of(path) == settings.scale_of(path)
    assert (
        found.magnitudes.keys() == adapter.magnitudes.keys() == (adapter.tensors if settings.magnitudes else {}).keys()
    )
    assert all(torch.equal(found.magnitudes[path], tensor) for path, tensor in adapter.magnitudes.items())
    save_adapter(found, tmp_path / "b", base="somewhere")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings("error:Found missing adapter keys", "ignore:Model has `tie_word_embeddings")
def test_peft_loads_our_adapter_with_equal_logits(build_llama, tmp_path, settings, tied):
    model = build_llama(tied_embeddings=tied)
    save_folder(model, tmp_path / "base")
    save_adapter(trained(model, settings), tmp_path / "a", base=str(tmp_path / "base"))
    theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "a")
    stored = {name.replace(".default", "") for name, _ in theirs.named_parameters() if "lora_" in name}
    ours = {name.removesuffix(".weight") for name in load_file(tmp_path / "a" / "adapter_model.safetensors")}
    assert {name.removesuffix(".weight") for name in stored} == ours
    with torch.no_grad():
        assert_equal_logits(model(IDS), theirs(IDS).logits)
    assert len(json.loads((tmp_path / "a" / "adapter_config.json").read_text())) == 17


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "up_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa"},
        {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "olora", "use_rslora": True},
        {"target_modules": ["k_proj", "embed_tokens"]},
        {"target_modules": ["k_proj", "lm_head"], "use_dora": True},
        {"target_modules": ["embed_tokens", "o_proj", "lm_head"]},
        {
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.up_proj": 7},
            "alpha_pattern": {"layers.0.mlp.up_proj": 3},
        },
    ],
    ids=lambda options: ", ".join(f"{key}={value}" for key, value in options.items()),
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings")
def test_we_load_pefts_adapter_with_equal_logits(build_llama, tmp_path, options, tied):
    model = build_llama(tied_embeddings=tied)
    save_folder(model, tmp_path / "base")
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "init_lora_weights": True} | options)
    theirs = get_peft_model(LlamaForCausalLM.from_pretrained(tmp_path / "base"), config)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_magnitude" in name:
                weight.mul_(torch.empty_like(weight).uniform_(0.5, 2))
            elif "lora_" in name:
                weight.add_(torch.empty_like(weight).normal_() * 0.1)
    theirs.save_pretrained(tmp_path / "a")
    ours = load_llama(tmp_path / "base")
    attach_adapter(ours, load_adapter(tmp_path / "a"))
    with torch.no_grad():
        theirs.eval()
        expected = theirs(IDS).logits
        assert_equal_logits(ours(IDS), expected)
        again = adapter_of(ours)
        detach(ours)
        attach_adapter(ours, again)
        assert_equal_logits(ours(IDS), expected)
        assert merge(ours) is (tied and not again.tensors.keys().isdisjoint(("embed_tokens", "lm_head")))
        assert_equal_logits(ours(IDS), expected)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_a_pefts_copy_of_another_bases_table_is_refused(build_llama, tmp_path):
    save_folder(build_llama(), tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    theirs = get_peft_model(LlamaForCausalLM.from_pretrained(tmp_path / "base"), config)
    theirs.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    other = build_llama()
    with torch.no_grad():
        other.embed_tokens.weight[0, 0] += 1
    with pytest.raises(CheckpointMismatch, match=r"embed_tokens.*copy"):
        attach_adapter(other, load_adapter(tmp_path / "a"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rslora", "yes"),
        ("use_dora", 1),
        ("fan_in_fan_out", True),
        (r"rank_pattern\..*", {r"layers\.[01]\..*q_proj": 2}),
        (r"rank_pattern.v_proj", {"v_proj": 0}),
        ("alpha_pattern.v_proj", {"v_proj": "2"}),
        ("modules_to_save", ["lm_head"]),
        ("bias", "lora_only"),
        ("bias", None),
        ("lora_bias", True),
        ("layer_replication", [[0, 1]]),
        ("layers_to_transform", [0]),
        ("target_parameters", ["x"]),
        ("trainable_token_indices", [1]),
        ("alora_invocation_tokens", [1]),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", []),
        ("loftq_config", {"bits": 4}),
        ("eva_config", {"rho": 2}),
        ("an_option_of_tomorrow", 1),
        ("peft_type", "IA3"),
        ("target_modules", "all-linear"),
        ("target_modules", ["norm"]),
        ("target_modules", []),
        ("r", 0),
        ("r", None),
        ("lora_alpha", "16"),
    ],
)
def test_an_active_option_that_we_lack_is_refused_by_name(tiny, tmp_path, key, value):
    save_adapter(trained(tiny, TWO), tmp_path / "a", base="base")
    edit(unsealed(tmp_path / "a"), **{key.partition(".")[0].partition("\\")[0]: value})
    with pytest.raises(FormatError, match=f"{key}: expected"):
        load_adapter(tmp_path / "a")


def test_inert_options_are_accepted(tiny, tmp_path):
    save_adapter(trained(tiny, TWO), tmp_path / "a", base="base")
    inert = {"loftq_config": {}, "megatron_core": "megatron.core", "qalora_group_size": 16, "corda_config": None}
    edit(unsealed(tmp_path / "a"), peft_version="1.0", an_option_of_tomorrow=False, lora_dropout=0.1, **inert)
    assert load_adapter(tmp_path / "a").settings == TWO


def test_tensors_that_do_not_fit_the_settings_are_named(tiny, tmp_path):
    save_adapter(trained(tiny, TWO), tmp_path / "a", base="base")
    path = unsealed(tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
    for changed in (
        {key: value for key, value in tensors.items() if key != name},
        {key: value for key, value in tensors.items() if "layers.0" not in key},
        {},
        tensors | {name: torch.zeros(2, 64)},
        tensors | {name: torch.zeros(3, 64, dtype=torch.int8)},
        tensors | {name: torch.full((3, 64), float("nan"))},
        tensors | {name.replace("v_proj", "k_proj"): torch.zeros(3, 64)},
        tensors | {name.replace("self_attn", "mlp"): torch.zeros(3, 64)},
        tensors | {name.replace("layers.1", "layers.01"): torch.zeros(3, 64)},
        tensors | {"base_model.model.lm_head.weight": torch.zeros(3, 64)},
    ):
        save_file(changed, path)
        with pytest.raises(FormatError, match="adapter_model"):
            load_adapter(tmp_path / "a")


def test_a_pickled_adapter_is_not_read(tiny, tmp_path):
    save_adapter(trained(tiny, TWO), tmp_path / "a", base="base")
    weights = unsealed(tmp_path / "a") / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FormatError, match="safetensors"):
        load_adapter(tmp_path / "a")


def test_a_changed_adapter_of_ours_is_refused(tiny, tmp_path):
    save_adapter(trained(tiny, TWO), tmp_path / "a", base="base")
    edit(tmp_path / "a", lora_alpha=8)
    with pytest.raises(CheckpointMismatch):
        load_adapter(tmp_path / "a")


def test_a_base_is_found_beside_the_adapter_or_not_at_all(tiny, base, tmp_path):
    adapter = trained(tiny, TWO)
    for name, found in (("../../base", True), (str(base), True), ("meta-llama/Llama-3.2-1B", False), ("", False)):
        save_adapter(adapter, tmp_path / "run" / "adapter", base=name)
        path = read_base_path(tmp_path / "run")
        assert (path is not None and path.resolve() == base) is found


def test_the_real_adapter_gives_the_reference_logits(shared_data):
    small = shared_data / "checkpoints" / "small"
    reference = json.loads((small / "reference.json").read_text())["adapter"]
    model = load_llama(small / "base")
    attach_adapter(model, load_adapter(small / "adapter"))
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == reference["trainable"]
    with torch.no_grad():
        logits = model(torch.tensor([reference["prompt"]]))[0, -1]
    expected = torch.tensor(reference["last_logits_first16"])
    assert (logits[:16] - expected).abs().max() <= 1e-4 * logits.abs().max()


def test_an_adapter_of_a_corrected_base_is_ours_alone(tiny, tmp_path):
    round_linears(tiny, "nf4", Residual(rank=4, correction="plain"))
    save_folder(tiny, tmp_path / "base")
    save_adapter(trained(tiny, ALL), tmp_path / "adapter", base="../base")
    with pytest.raises(KeyError, match="PUNA_LORA_BESIDE_CORRECTED"):
        PeftConfig.from_pretrained(tmp_path / "adapter")
    again, adapter = load_llama(tmp_path / "base"), load_adapter(tmp_path / "adapter")
    assert adapter.beside_corrected
    attach_adapter(again, adapter)
    with torch.no_grad():
        assert torch.equal(again(IDS), tiny(IDS))
    merge(again)
    with torch.no_grad():
        assert (again(IDS) - tiny(IDS)).abs().max() < T32 * tiny(IDS).abs().max()
