"""Conversion as a person asks for it: tokenizer, template, settings and adapter come along, and the result loads anywhere."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import puna
from puna.adaptation.targets import adapter_of, attach, named_loras
from puna.arch.rope_scaling import Llama3Scaling
from puna.errors import CheckpointMismatch, FormatError, UsageError
from puna.jobs.convert import convert
from puna.jobs.load import load
from puna.jobs.show import show
from puna.jobs.verify import verify
from puna.model.linears.adapter import LoraSettings
from puna.tokens.learning import learn_tokenizer
from puna.weights.adapters import save_adapter
from puna.weights.folder import save_folder
from puna.weights.gguf import read_gguf
from puna.weights.loading import weights_sha256
from puna.weights.meta import MetaSettings
from puna.weights.pth_worker import list_tensors

TEXT = "A llama carries what it is given, one word after another; 猫 too.\n"
META = MetaSettings(meta_max_seq_len=256)
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


@pytest.fixture(autouse=True)
def read_pickles_here(monkeypatch):
    """A child takes two seconds to start; that it reads the same is the matter of test_pth.py."""
    monkeypatch.setattr("puna.weights.pth._ask", lambda child, path: list_tensors(str(path)))


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer([TEXT * 20], 300)


@pytest.fixture
def run(build_llama, tokenizer, tmp_path):
    """A run folder whose model has a chat template and settings of generation."""
    folder = tmp_path / "run" / "model"
    save_folder(build_llama(vocab_size=300), folder, tokenizer)
    (folder / "MANIFEST.json").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "bos_token_id": tokenizer.bos_id}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return tmp_path / "run"


def target(tmp_path, to):
    return tmp_path / ("out.gguf" if to == "gguf" else f"out-{to}")


@pytest.mark.parametrize("to", ["hf", "gguf", "meta"])
def test_everything_comes_along(run, tmp_path, tokenizer, to):
    result = convert(run, target(tmp_path, to), to)
    assert (result.format, result.path) == (to, str(target(tmp_path, to)))
    loaded = load(target(tmp_path, to), meta=META)
    assert loaded.tokenizer.encode(TEXT, bos=True) == tokenizer.encode(TEXT, bos=True)
    assert loaded.tokenizer.specials.keys() >= tokenizer.specials.keys()
    assert loaded.eos_ids[0] == tokenizer.eos_ids[0]
    assert result.tensors == len(show(result.path, META if to == "meta" else None).tensors)
    if to != "meta":
        assert loaded.tokenizer.chat_template == TEMPLATE
    if to == "hf":
        kept = json.loads((target(tmp_path, to) / "generation_config.json").read_text())
        assert kept == json.loads((run / "model" / "generation_config.json").read_text())
    ids = torch.tensor([tokenizer.encode(TEXT, bos=True)])
    with torch.no_grad():
        assert torch.equal(loaded(ids), puna.load(run)(ids))


def test_transformers_loads_what_comes_back_from_gguf(run, tmp_path, tokenizer):
    convert(run, tmp_path / "there.gguf", "gguf")
    convert(tmp_path / "there.gguf", tmp_path / "back", "hf")
    theirs, names = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "back"),
        AutoTokenizer.from_pretrained(tmp_path / "back"),
    )
    ids = names(TEXT)["input_ids"]
    assert ids == tokenizer.encode(TEXT, bos=True)
    with torch.no_grad():
        expected = puna.load(run)(torch.tensor([ids]))
        got = theirs(torch.tensor([ids])).logits
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    message = [{"role": "user", "content": "hello"}]
    assert names.apply_chat_template(message, tokenize=False) == "<|begin_of_text|>user: hello\n"


def test_an_adapter_comes_folded_in_with_or_without_its_bases_name(run, tmp_path):
    model = load(run).llama
    attach(model, LoraSettings(rank=2, alpha=4.0, targets=("q_proj", "up_proj")), seed=0)
    with torch.no_grad():
        for _, lora in named_loras(model):
            lora.B.normal_(generator=torch.Generator().manual_seed(1))
    save_adapter(adapter_of(model, weights_sha256(run)), tmp_path / "tuned" / "adapter", base=str(run))
    convert(tmp_path / "tuned", tmp_path / "a.gguf", "gguf")
    convert(run, tmp_path / "b.gguf", "gguf", adapter=tmp_path / "tuned")
    assert (tmp_path / "a.gguf").read_bytes()[-50_000:] == (tmp_path / "b.gguf").read_bytes()[-50_000:]
    assert verify(tmp_path / "tuned", tmp_path / "a.gguf", tolerance=1e-5).agree
    assert not verify(run, tmp_path / "a.gguf").agree
    save_adapter(adapter_of(model, "00" * 32), tmp_path / "other" / "adapter", base=str(run))
    with pytest.raises(CheckpointMismatch, match="other weights"):
        convert(run, tmp_path / "c.gguf", "gguf", adapter=tmp_path / "other")


def test_types_that_change_are_said(run, tmp_path):
    notices = convert(run, tmp_path / "x.gguf", "gguf", dtype="q4_0").notices
    assert any(notice.startswith("F32 -> Q4_0: layers.0.self_attn.q_proj.weight and") for notice in notices)
    assert any(notice.startswith("F32 -> F16: layers.0.mlp.down_proj.weight") for notice in notices)
    assert convert(tmp_path / "x.gguf", tmp_path / "y.gguf", "gguf").notices == ()
    back = convert(tmp_path / "x.gguf", tmp_path / "plain", "hf", dtype="bf16")
    assert any(notice.startswith("Q4_0 -> BF16") for notice in back.notices)


def test_a_model_without_tokenizer_is_converted_and_that_is_said(tiny, tmp_path):
    save_folder(tiny, tmp_path / "bare")
    for to in ("gguf", "meta", "hf"):
        assert convert(tmp_path / "bare", target(tmp_path, to), to).notices[-1].startswith("no tokenizer")
        assert not load(target(tmp_path, to), meta=META).has_tokenizer


@pytest.mark.parametrize(
    ("to", "name", "reason"),
    [
        ("gguf", "out", "ends in .gguf"),
        ("gguf", "run", "ends in .gguf"),
        ("hf", "run/model", "is the source"),
        ("hf", "run/model/sub", "lies in it"),
        ("hf", "run", "holds it"),
        ("gguf", "run/model/x.gguf", "lies in it"),
        ("hf", "things", "something else"),
        ("meta", "things", "something else"),
    ],
)
def test_a_target_that_would_lose_something_is_refused(run, tmp_path, to, name, reason):
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match=reason):
        convert(run, tmp_path / name, to)
    assert (tmp_path / "things" / "letter.txt").read_text() == "dear"


def test_a_folder_as_the_file_of_a_gguf_is_refused_with_a_place_beside_it(run, tmp_path):
    (tmp_path / "x.gguf").mkdir()
    for out, better in (("/", "/model.gguf"), (tmp_path / "x.gguf", tmp_path / "x.gguf" / "model.gguf")):
        with pytest.raises(UsageError, match=r"expected a file that ends in \.gguf, got a folder") as caught:
            convert(run, out, "gguf")
        assert caught.value.hint == f"name {better}"


def test_ends_that_a_format_has_no_place_for_are_said(run, tmp_path, tokenizer):
    settings = run / "model" / "generation_config.json"
    ends = [tokenizer.eos_ids[0], 7, 9]
    settings.write_text(json.dumps({"eos_token_id": ends}))
    for to in ("gguf", "meta"):
        assert any("ids [7, 9] were left out" in each for each in convert(run, target(tmp_path, to), to).notices)
    settings.write_text(json.dumps({"eos_token_id": list(tokenizer.eos_ids)}))
    assert not any("left out" in each for each in convert(run, tmp_path / "fine.gguf", "gguf").notices)
    settings.write_text('{"text": "\\ud800"}')
    with pytest.raises(FormatError, match=r"generation_config\.json.*half a surrogate pair"):
        convert(run, tmp_path / "out", "hf")


def test_an_adapter_without_a_hash_of_its_base_is_folded_in_and_that_is_said(run, tmp_path):
    model = load(run).llama
    attach(model, LoraSettings(rank=2, alpha=4.0, targets=("q_proj",)), seed=0)
    save_adapter(adapter_of(model, None), tmp_path / "tuned", base=str(run))
    said = f"{tmp_path / 'tuned'}: does not say which weights it was trained on"
    assert said in load(run, adapter=tmp_path / "tuned").notices
    assert said in convert(run, tmp_path / "a.gguf", "gguf", adapter=tmp_path / "tuned").notices
    assert said not in convert(run, tmp_path / "b.gguf", "gguf").notices


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(build_llama, tokenizer, tmp_path):
    save_folder(build_llama(vocab_size=290), tmp_path / "small")
    tokenizer.save(tmp_path / "small")
    (tmp_path / "small" / "MANIFEST.json").unlink()
    for read in (load, lambda path: convert(path, tmp_path / "x.gguf", "gguf")):
        with pytest.raises(FormatError, match=r"at most 290 ids.*got 300"):
            read(tmp_path / "small")
    save_folder(build_llama(vocab_size=310), tmp_path / "padded", tokenizer)  # some checkpoints pad the embedding
    assert load(tmp_path / "padded").tokenizer.vocab_size == 300


def test_llama_1_and_2_of_meta_need_a_context(run, tmp_path):
    convert(run, tmp_path / "meta", "meta")
    with pytest.raises(FormatError, match="context") as caught:
        load(tmp_path / "meta")
    assert "--set weights.meta_max_seq_len=4096" in caught.value.hint
    convert(tmp_path / "meta", tmp_path / "hf", "hf", meta=META)
    assert load(tmp_path / "hf").config == load(run).config


def test_an_unknown_type_is_answered_with_the_nearest(run, tmp_path):
    with pytest.raises(UsageError, match="unknown dtype") as caught:
        convert(run, tmp_path / "x", "hf", dtype="b16")
    assert "bf16" in caught.value.hint


def test_what_a_user_put_beside_or_into_a_target_is_never_lost(run, tmp_path):
    convert(run, tmp_path / "out", "hf")
    (tmp_path / "out.old").mkdir()
    (tmp_path / "out.old" / "letter.txt").write_text("dear")
    convert(run, tmp_path / "out", "hf")
    assert (tmp_path / "out.old" / "letter.txt").read_text() == "dear"
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "MANIFEST.json").write_text("{}")
    (tmp_path / "out" / "letter.txt").write_text("dear")
    for name in ("web", "out"):
        with pytest.raises(UsageError, match="something else"):
            convert(run, tmp_path / name, "hf")
    with pytest.raises(UsageError, match="with a name"):
        convert(run, ".", "hf")


def test_an_embedding_of_more_rows_than_tokens_is_filled_up_for_llama_cpp(build_llama, tokenizer, tmp_path):
    save_folder(build_llama(vocab_size=310), tmp_path / "padded", tokenizer)
    convert(tmp_path / "padded", tmp_path / "padded.gguf", "gguf")
    metadata = read_gguf(tmp_path / "padded.gguf").metadata
    assert len(metadata["tokenizer.ggml.tokens"]) == len(metadata["tokenizer.ggml.token_type"]) == 310
    assert load(tmp_path / "padded.gguf").tokenizer.vocab_size == 300
    assert verify(tmp_path / "padded", tmp_path / "padded.gguf", tolerance=0.0).agree


def test_what_meta_does_not_store_is_said_with_the_way_to_read_it_back(build_llama, tokenizer, tmp_path):
    scaling = Llama3Scaling(factor=16.0)
    save_folder(build_llama(vocab_size=300, rope_scaling=scaling), tmp_path / "scaled", tokenizer)
    notices = convert(tmp_path / "scaled", tmp_path / "meta", "meta").notices
    assert any("--set weights.meta_max_seq_len=256" in notice for notice in notices)
    assert any("--set weights.meta_rope_factor=16" in notice for notice in notices)
    back = MetaSettings(meta_max_seq_len=256, meta_rope_factor=16.0)
    assert show(tmp_path / "meta", back).config["rope_scaling"]["factor"] == 16.0


def test_what_a_format_leaves_out_is_said(run, tmp_path):
    notices = convert(run, tmp_path / "meta", "meta").notices
    assert any("do_sample, temperature, top_p were left out" in notice for notice in notices)
    assert any("no chat template" in notice for notice in notices)


def test_settings_that_only_a_meta_folder_needs_are_refused_elsewhere(run, tmp_path):
    for read in (show, lambda path, meta: convert(path, tmp_path / "x", "hf", meta=meta)):
        with pytest.raises(UsageError, match="meta_max_seq_len"):
            read(run / "model", META)


def test_special_ids_of_the_configuration_come_along(run, tmp_path):
    file = run / "model" / "config.json"
    ids = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 4}
    file.write_text(json.dumps({**json.loads(file.read_text()), **ids}))
    convert(run, tmp_path / "out", "hf")
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: kept[key] for key in ids} == ids
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token_id": 99_999}))
    with pytest.raises(FormatError, match="pad_token_id"):
        show(run / "model")
