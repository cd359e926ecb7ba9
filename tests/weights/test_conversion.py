"""Any format into any other: lossless types come back bit for bit, and what is said is the same."""

import json
from dataclasses import replace

import pytest
import torch

from puna.adaptation.merge import merge
from puna.adaptation.targets import adapter_of, attach
from puna.arch.attention_pattern import Blocks, SlidingWindow
from puna.arch.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from puna.errors import CheckpointMismatch, DiskFull, FormatError, UsageError
from puna.model.block_quantization import dequantize_blocks, quantize_blocks
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.int8 import Int8WeightLinear
from puna.model.linears.kind import dense_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.surgery import named_linears, replace_linears
from puna.weights.conversion import convert_checkpoint
from puna.weights.folder import save_folder
from puna.weights.gguf import read_gguf
from puna.weights.headers import read_header
from puna.weights.loading import load_llama
from puna.weights.meta import MetaSettings
from puna.weights.pth_worker import list_tensors
from tests.fused import fuse
from tests.weights.meta_reference import meta_logits

T32 = 1e-5
IDS = torch.randint(0, 512, (2, 60), generator=torch.Generator().manual_seed(0))
META = MetaSettings(meta_max_seq_len=256)
SHAPES = {
    "grouped": {},
    "multi-head, untied": {"n_kv_heads": 4, "tied_embeddings": False},
    "multi-query": {"n_kv_heads": 1, "rope_theta": 5e5},
    "llama 3.1": {"rope_scaling": Llama3Scaling(factor=8.0), "rope_theta": 5e5, "max_seq_len": 131_072},
}
GGUF_SHAPES = {
    **SHAPES,
    "wide heads": {"head_dim": 24, "n_kv_heads": 1},
    "linear scaling": {"rope_scaling": LinearScaling(factor=4.0)},
    "yarn scaling": {"rope_scaling": YarnScaling(factor=4.0, original_max_seq_len=64)},
    "llama3 scaling of its own": {
        "rope_scaling": Llama3Scaling(factor=4.0, low_freq_factor=2.0, high_freq_factor=8.0, original_max_seq_len=32)
    },
}
CASES = [*(("meta", shape) for shape in SHAPES), *(("gguf", shape) for shape in GGUF_SHAPES)]


@pytest.fixture(autouse=True)
def read_pickles_here(monkeypatch):
    """A child takes two seconds to start; that it reads the same is the matter of test_pth.py."""
    monkeypatch.setattr("puna.weights.pth._ask", lambda child, path: list_tensors(str(path)))


@pytest.fixture
def source(tmp_path):
    """`source(model, ...)`: the header of the model's Hugging Face folder."""

    def save(model, name="source", **options):
        save_folder(model, tmp_path / name, **options)
        return read_header(tmp_path / name)

    return save


@pytest.fixture
def convert(tmp_path):
    """`convert(header, to, ...)`: the header of the converted checkpoint."""

    def run(header, to, name=None, meta=META, **options):
        target = tmp_path / (name or ("out.gguf" if to == "gguf" else f"out-{to}"))
        convert_checkpoint(header, target, to, **options)
        return read_header(target, meta)

    return run


def assert_same_model(found, model, tolerance=0.0):
    state = model.state_dict()
    assert found.state_dict().keys() == state.keys()
    for name, tensor in found.state_dict().items():
        assert (tensor - state[name]).abs().max() <= tolerance * state[name].abs().max(), name


@pytest.mark.parametrize(("to", "shape"), CASES)
def test_a_model_comes_back_bit_for_bit(build_llama, source, convert, to, shape):
    model = build_llama(**GGUF_SHAPES[shape])
    header = source(model)
    there = convert(header, to, meta=MetaSettings(meta_max_seq_len=model.config.max_seq_len))
    assert there.format == to
    assert there.config == model.config
    assert_same_model(load_llama(there), model)
    back = convert(there, "hf")
    assert back.config == model.config
    files = [(folder / "model.safetensors").read_bytes() for folder in (header.path, back.path)]
    assert files[0] == files[1]


@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_weights_keep_their_type(build_llama, source, convert, to, dtype):
    model = build_llama(tied_embeddings=False).to(dtype)
    there = convert(source(model), to)
    assert_same_model(load_llama(there, dtype=dtype), model)
    types = {tensor.dtype for tensor in there.tensors if len(tensor.shape) > 1}
    assert types == {"F16" if dtype == torch.float16 else "BF16"}


@pytest.mark.parametrize("to", ["hf", "gguf", "meta"])
def test_a_file_that_we_wrote_is_written_again_byte_for_byte(tiny, source, convert, to):
    first = convert(source(tiny), to)
    second = convert(first, to, name="again.gguf" if to == "gguf" else "again")
    if to == "gguf":
        assert read_gguf(second.path).metadata.pop("general.name") == "again"
        return_to = [path.read_bytes()[-200_000:] for path in (first.path, second.path)]
        assert return_to[0] == return_to[1]
        return
    names = sorted(path.name for path in first.path.iterdir())
    assert names == sorted(path.name for path in second.path.iterdir())
    assert all((first.path / name).read_bytes() == (second.path / name).read_bytes() for name in names)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_are_what_the_codec_makes_of_each_matrix(build_llama, source, convert, kind):
    model = build_llama(tied_embeddings=False)
    there = convert(source(model), "gguf", dtype=kind)
    types = {tensor.name: tensor.dtype for tensor in there.tensors}
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["output_norm.weight"] == "F32"
    assert types["blk.1.ffn_up.weight"] == kind
    assert types["blk.1.ffn_down.weight"] == "F16"  # 176 is no multiple of 32
    found = load_llama(there)
    for path in ("layers.0.self_attn.q_proj", "layers.1.mlp.up_proj"):
        weight = model.get_submodule(path).weight
        expected = dequantize_blocks(kind, quantize_blocks(kind, weight))
        assert torch.equal(found.get_submodule(path).weight, expected)
    again = convert(there, "gguf", name="again.gguf")
    assert again.path.read_bytes()[-100_000:] == there.path.read_bytes()[-100_000:]
    plain = convert(there, "hf")
    assert_same_model(load_llama(plain), found)


def split_shards(folder, count, columns=False):
    """Split our one shard as Meta's model parallelism would, by shapes that are written out here."""
    whole = torch.load(folder / "consolidated.00.pth", weights_only=True)
    rows = ("wq", "wk", "wv", "w1", "w3", "output")
    for index in range(count):
        part = {}
        for name, tensor in whole.items():
            kind = name.split(".")[-2]
            if kind in rows or (kind == "tok_embeddings" and not columns):
                part[name] = tensor.chunk(count, 0)[index].clone()
            elif kind in ("wo", "w2", "tok_embeddings"):
                part[name] = tensor.chunk(count, 1)[index].clone()
            else:
                part[name] = tensor
        torch.save(part, folder / f"consolidated.{index:02d}.pth")


@pytest.mark.parametrize(("count", "columns"), [(2, False), (2, True), (4, False)])
def test_shards_of_metas_model_parallelism_join(build_llama, source, convert, count, columns):
    model = build_llama(n_kv_heads=4, tied_embeddings=False)
    folder = convert(source(model), "meta").path
    (folder / "MANIFEST.json").unlink()
    split_shards(folder, count, columns)
    assert_same_model(load_llama(read_header(folder, META)), model)
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, "vocab_size": -1}))
    assert read_header(folder, META).config == model.config
    tensors = torch.load(folder / "consolidated.01.pth", weights_only=True)
    torch.save({**tensors, "norm.weight": tensors["norm.weight"] + 1}, folder / "consolidated.01.pth")
    with pytest.raises(FormatError, match=r"norm\.weight: expected the same"):
        load_llama(read_header(folder, META))
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(FormatError, match=r"consolidated\.00\.pth"):
        read_header(folder, META)


@pytest.mark.parametrize("shape", SHAPES)
def test_metas_layout_computes_the_same_by_complex_rotation(build_llama, source, convert, shape):
    model = build_llama(**SHAPES[shape])
    folder = convert(source(model), "meta").path
    params = json.loads((folder / "params.json").read_text())
    tensors = torch.load(folder / "consolidated.00.pth", weights_only=True)
    with torch.no_grad():
        ours, theirs = model(IDS), meta_logits(tensors, params, IDS)
    assert (ours - theirs).abs().max() <= T32 * ours.abs().max()


def test_an_adapter_is_folded_in_as_merging_does(build_llama, source, convert):
    header = source(build_llama())
    model = load_llama(header)
    attach(model, LoraSettings(rank=3, alpha=6.0, targets=("q_proj", "down_proj")), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".B"):
                weight.normal_(generator=torch.Generator().manual_seed(1))
    adapter = adapter_of(model)
    there = convert(header, "gguf", adapter=adapter)
    merge(model)
    assert_same_model(load_llama(there), model)
    wrong = replace(adapter, tensors={"layers.7.mlp.up_proj": next(iter(adapter.tensors.values()))})
    with pytest.raises(CheckpointMismatch, match=r"layers\.7"):
        convert(header, "hf", adapter=wrong)


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_factors_and_codes_become_dense(tiny, source, convert, to):
    def build(path, old):
        if path.endswith("up_proj"):
            return Int8WeightLinear.from_dense(dense_weight(old))
        return LowRankLinear(old.weight.detach()[:, :5], old.weight.detach()[:5])

    replace_linears(tiny, ("q_proj", "up_proj"), build)
    header = source(tiny)
    assert header.format == "puna"
    there = convert(header, to)
    assert there.format == to
    dense = load_llama(there)
    for path in ("layers.0.self_attn.q_proj", "layers.1.mlp.up_proj", "layers.1.mlp.down_proj"):
        assert torch.equal(dense_weight(dense.get_submodule(path)), dense_weight(tiny.get_submodule(path)))


@pytest.mark.parametrize("to", ["hf", "gguf", "meta"])
def test_a_shared_factor_is_multiplied_out_for_each_of_its_linears(tiny, source, convert, to):
    there = convert(source(fuse(tiny)), to)
    assert there.format == to
    dense = load_llama(there)
    for path, linear in named_linears(tiny):
        assert torch.equal(dense_weight(dense.get_submodule(path)), dense_weight(linear)), path
    with torch.no_grad():
        assert (dense(IDS) - tiny(IDS)).abs().max() <= T32 * tiny(IDS).abs().max()


@pytest.mark.parametrize(
    ("to", "changes", "dtype", "reason"),
    [
        ("meta", {"head_dim": 24}, None, "heads of 24"),
        ("meta", {"rope_scaling": LinearScaling(factor=2.0)}, None, "linear"),
        ("meta", {"rope_scaling": YarnScaling(factor=2.0, original_max_seq_len=64)}, None, "yarn"),
        ("meta", {"rope_scaling": Llama3Scaling(factor=8.0, original_max_seq_len=64)}, None, "llama3"),
        ("gguf", {"rope_scaling": YarnScaling(factor=2.0, original_max_seq_len=64, beta_slow=2.0)}, None, "YaRN"),
        ("gguf", {"rope_scaling": YarnScaling(factor=2.0, original_max_seq_len=64, ramp="turns")}, None, "YaRN"),
        ("hf", {"rope_scaling": YarnScaling(factor=2.0, original_max_seq_len=64, ramp="turns")}, None, "ramp"),
        ("hf", {"pattern": SlidingWindow(window=8)}, None, "attention of kind sliding_window"),
        ("gguf", {"pattern": Blocks(size=8)}, None, "attention of kind blocks"),
        ("hf", {"norm": "layer"}, None, "norms of kind layer: hf cannot say that"),
        ("gguf", {"ffn": "geglu"}, None, "a feed-forward network of kind geglu"),
        ("meta", {"attention_bias": True}, None, "attention with biases"),
        ("hf", {}, "Q8_0", "no type Q8_0"),
        ("meta", {}, "Q4_0", "no type Q4_0"),
    ],
)
def test_what_a_format_cannot_say_is_refused_before_anything_is_written(
    build_llama, source, convert, tmp_path, to, changes, dtype, reason
):
    header = source(build_llama(**{key: value for key, value in changes.items() if key != "rope_scaling"}))
    header = replace(header, stored=replace(header.stored, model=replace(header.config, **changes)))
    with pytest.raises(UsageError, match=reason):
        convert(header, to, dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_numbers_too_large_for_float16_are_refused_by_name(tiny, source, convert, tmp_path):
    with torch.no_grad():
        tiny.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    header = source(tiny)
    for to in ("hf", "gguf", "meta"):
        with pytest.raises(FormatError, match=r"(up_proj|ffn_up|w3).weight: expected finite"):
            convert(header, to, dtype="F16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_space_is_looked_at_before_anything_is_written(tiny, source, convert, monkeypatch, tmp_path):
    header = source(tiny)
    monkeypatch.setattr("puna.weights.conversion.free_bytes", lambda path: 1000)
    with pytest.raises(DiskFull, match="bytes are needed, 1,000 are free"):
        convert(header, "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_write_that_fails_leaves_the_old_file_whole(tiny, source, convert, monkeypatch, tmp_path):
    header = source(tiny)
    old = {to: convert(header, to).path for to in ("gguf", "meta", "hf")}

    def snapshot():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = snapshot()
    monkeypatch.setattr("puna.weights.dense.refuse_non_finite", lambda path, name, weight: 1 / (name != "norm.weight"))
    for to in old:
        with pytest.raises(ZeroDivisionError):
            convert(header, to)
    assert snapshot() == before
