"""puna.load: whatever holds a model is found, and whatever does not is answered with a way on."""

import json

import pytest
import torch

import puna
from puna.adaptation.targets import adapter_of, attach, named_loras
from puna.errors import CheckpointMismatch, FormatError, PunaError, UsageError
from puna.evaluation.perplexity import evaluate_text
from puna.jobs.load import find_base, find_model, load
from puna.model.linears.adapter import LoraSettings
from puna.tokens.learning import learn_tokenizer
from puna.weights.adapters import save_adapter
from puna.weights.folder import save_folder
from puna.weights.loading import weights_sha256

IDS = torch.arange(20)[None]
TEXT = "A llama carries what it is given, one word after another. " * 20


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer([TEXT], 300)


@pytest.fixture
def run(tiny, tokenizer, tmp_path):
    """A run folder with a model."""
    save_folder(tiny, tmp_path / "run" / "model", tokenizer)
    return tmp_path / "run"


def add_adapter(model, folder, base, sha256):
    attach(model, LoraSettings(rank=2, alpha=4.0, targets=("q_proj",)), seed=0)
    with torch.no_grad():
        for _, lora in named_loras(model):
            lora.B.fill_(0.1)
    save_adapter(adapter_of(model, sha256), folder / "adapter", base=str(base))
    return folder


def test_run_folder_and_model_folder_load_the_same(run, tiny, tokenizer):
    for path in (run, run / "model", str(run)):
        loaded = puna.load(path)
        assert find_model(path) == run / "model"
        with torch.no_grad():
            assert torch.equal(loaded(IDS), tiny(IDS))
        assert loaded.tokenizer.sha256 == tokenizer.sha256
        assert (loaded.config, loaded.eos_ids, loaded.notices) == (tiny.config, tokenizer.eos_ids, ())


def test_the_type_is_the_one_asked_for(run):
    assert load(run, dtype=torch.bfloat16).llama.dtype == torch.bfloat16


def test_generate_continues_a_text_and_refuses_unknown_settings(run):
    loaded = load(run)
    completion = loaded.generate("A llama", max_new_tokens=5, temperature=0.0)
    assert 1 <= completion.new_tokens <= 5
    assert completion.ids == loaded.generate("A llama", max_new_tokens=5, top_k=1, seed=9).ids
    with pytest.raises(UsageError, match="temprature") as caught:
        loaded.generate("A llama", temprature=0.5)
    assert "temperature" in caught.value.hint


def test_without_a_tokenizer_ids_still_give_logits(tiny, tmp_path):
    save_folder(tiny, tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert loaded(IDS).shape == (1, 20, 512)
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        loaded.generate("x")


def test_an_adapter_is_attached_by_name_or_with_the_base_that_it_names(run, tiny, tmp_path):
    add_adapter(tiny, tmp_path / "adapted", run, weights_sha256(run))
    with torch.no_grad():
        expected = tiny(IDS)
        for loaded in (load(run, adapter=tmp_path / "adapted"), load(tmp_path / "adapted"),
                       load(tmp_path / "adapted" / "adapter")):  # fmt: skip
            assert torch.equal(loaded(IDS), expected)
            assert loaded.notices == ()
    assert find_base(tmp_path / "adapted") == run / "model"
    with pytest.raises(UsageError, match="is an adapter") as caught:
        find_model(tmp_path / "adapted")
    assert "--adapter" in caught.value.hint


def test_an_adapter_of_other_weights_is_refused_and_of_unknown_ones_said(run, build_llama, tmp_path):
    add_adapter(build_llama(), tmp_path / "other", run, "00" * 32)
    with pytest.raises(CheckpointMismatch, match="other weights"):
        load(run, adapter=tmp_path / "other")
    add_adapter(build_llama(), tmp_path / "unknown", tmp_path / "nowhere", None)
    (notice,) = load(run, adapter=tmp_path / "unknown").notices
    assert "does not say" in notice
    with pytest.raises(UsageError, match="not here"):
        load(tmp_path / "unknown")


@pytest.mark.parametrize("load_or_find", [load, find_model])
@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("llama-3-8b", "preset and has no weights", "puna train"),
        ("meta-llama/Llama-3.2-1B", "not downloaded", "hf download meta-llama/Llama-3.2-1B --local-dir Llama-3.2-1B"),
        ("rum", "no such file", "did you mean run?"),
        ("nothing/like/it", "no such file", "run folder"),
        ("run/model/config.json", "configuration and has no weights", "folder with weights"),
    ],
)
def test_what_holds_no_weights_is_answered_with_a_way_on(run, monkeypatch, load_or_find, name, message, hint):
    monkeypatch.chdir(run.parent)
    with pytest.raises(UsageError, match=message) as caught:
        load_or_find(name)
    assert hint in caught.value.hint


def test_a_folder_without_config_and_other_formats_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for path, message in (
        (tmp_path, "GGUF"),
        (tmp_path / "model.safetensors", "config"),
    ):
        with pytest.raises(FormatError, match=message):
            find_model(path)


@pytest.mark.parametrize("change", [{"auto_map": {"AutoModel": "evil.py"}}, {"eos_token_id": [3, 5]}])
def test_what_a_config_asks_in_vain_is_a_notice(run, change):
    path = run / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (run / "model" / "MANIFEST.json").unlink()
    (notice,) = load(run).notices
    assert "auto_map" in notice or "(3, 5)" in notice


def test_the_real_checkpoint_gives_the_reference_tokens(shared_data):
    small = shared_data / "checkpoints" / "small"
    reference = json.loads((small / "reference.json").read_text())
    for path, expected in ((small / "base", reference), (small / "adapter", reference["adapter"])):
        loaded = load(path)
        ids = torch.tensor([expected["greedy"]])
        prompt = len(expected["prompt"])
        with torch.no_grad():
            logits = loaded(ids)[0]
        assert logits[prompt - 1 : -1].argmax(-1).tolist() == expected["greedy"][prompt:]
        first16 = torch.tensor(expected["last_logits_first16"])
        assert (logits[prompt - 1, :16] - first16).abs().max() <= 1e-4 * logits[prompt - 1].abs().max()


@pytest.mark.nightly
def test_the_real_adapter_gives_the_reference_likelihood(shared_data):
    small = shared_data / "checkpoints" / "small"
    expected = json.loads((small / "reference.json").read_text())["adapter"]["shakespeare_tail"]
    text = (shared_data / "texts" / "tinyshakespeare.txt").read_text()[1_000_000:]
    loaded = load(small / "adapter")
    likelihood = evaluate_text(loaded.llama, loaded.tokenizer, text, window=256)
    whole = likelihood.window_nats[: expected["tokens"] // 256]  # the reference leaves the last, shorter window out
    assert sum(whole) / expected["tokens"] == pytest.approx(expected["nats_per_token"], rel=1e-6)


def test_adapters_are_switched_beside_one_base(run, tmp_path):
    for number in (1, 2):
        base = load(run).llama
        attach(base, LoraSettings(rank=number, alpha=4.0, targets=("q_proj", "lm_head")), seed=number)
        with torch.no_grad():
            for _, lora in named_loras(base):
                lora.B.fill_(0.1 * number)
        sha256 = weights_sha256(run / "model")
        save_adapter(adapter_of(base, sha256), tmp_path / str(number), base=str(run))
    save_adapter(adapter_of(base, "00" * 32), tmp_path / "other", base=str(run))
    model, ids = load(run), IDS
    with torch.no_grad():
        plain = model(ids)
        expected = {number: load(run, adapter=tmp_path / str(number))(ids) for number in (1, 2)}
        for number in (1, 2, 1):
            model.use_adapter(tmp_path / str(number))
            assert torch.equal(model(ids), expected[number])
        for wrong in ("other", "none"):
            with pytest.raises(PunaError):
                model.use_adapter(tmp_path / wrong)
            assert torch.equal(model(ids), expected[1])
        model.use_adapter(None)
        assert torch.equal(model(ids), plain)
