"""Weights left in their file: the same model, no memory of its own for a matrix, and the file is never written."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puna.adaptation.streaming import stream_layers
from puna.adaptation.targets import attach
from puna.arch.modules import LINEARS
from puna.arch.presets import find_preset
from puna.errors import FormatError, UsageError
from puna.files import sha256_file
from puna.model.batch import Batch
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.int8 import Int8WeightLinear
from puna.model.linears.kind import dense_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.llama import Llama
from puna.model.surgery import named_linears, replace_linear, replace_linears
from puna.training.config import StepBudget, TrainingConfig
from puna.training.optimizer import build_optimizer, trainable
from puna.training.step import train_step
from puna.weights.folder import save_folder
from puna.weights.headers import read_header
from puna.weights.loading import load_llama
from tests.fused import fuse

IDS = torch.randint(0, 512, (2, 20), generator=torch.Generator().manual_seed(0))
SETTINGS = LoraSettings(rank=4, alpha=8.0, targets=LINEARS)


def mapped_places() -> list[tuple[int, int]]:
    """Where this process has safetensors files mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(".safetensors")]
    return [(int(begin, 16), int(end, 16)) for begin, end in spans]


def is_mapped(tensor: torch.Tensor) -> bool:
    return any(begin <= tensor.data_ptr() < end for begin, end in mapped_places())


def train(model: Llama, steps: int = 2) -> list[torch.Tensor]:
    optimizer = build_optimizer(model, TrainingConfig(budget=StepBudget(steps=steps)))
    for _ in range(steps):
        batch = Batch(ids_BT=IDS[:, :-1], targets_BT=IDS[:, 1:])
        train_step(model, optimizer, [batch], rate=1e-2, clip=1.0, precision="float32")
    return [weight.detach() for weight in trainable(model).values()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_mapped_model_is_the_same_and_its_matrices_stay_in_the_file(build_llama, tmp_path, dtype, tied) -> None:
    save_folder(build_llama(tied_embeddings=tied).to(dtype), tmp_path / "a")
    mapped, copied = load_llama(tmp_path / "a", dtype=dtype, mapped=True), load_llama(tmp_path / "a", dtype=dtype)
    for (name, ours), theirs in zip(mapped.state_dict().items(), copied.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
        assert is_mapped(ours) is (ours.dim() == 2), name
        assert not is_mapped(theirs), name
    assert (mapped.lm_head.weight is mapped.embed_tokens.weight) is tied


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("streams", [False, True])
def test_training_beside_mapped_weights_leaves_them_and_the_file_as_they_are(build_llama, tmp_path, streams) -> None:
    save_folder(build_llama(tied_embeddings=False), tmp_path / "a")
    files = {path: sha256_file(path) for path in (tmp_path / "a").iterdir()}
    model = load_llama(tmp_path / "a", mapped=True)
    attach(model, SETTINGS, seed=0)
    other = load_llama(tmp_path / "a")
    attach(other, SETTINGS, seed=0)
    if streams:
        stream_layers(model, model.config.n_layers, "cpu", embedding=True)
    assert all(torch.equal(a, b) for a, b in zip(train(model), train(other), strict=True))
    assert all(is_mapped(linear.base.weight) for _, linear in named_linears(model))
    assert {path: sha256_file(path) for path in (tmp_path / "a").iterdir()} == files
    with torch.no_grad():
        model.embed_tokens.weight.add_(1.0)  # a private page, not the file's
    assert {path: sha256_file(path) for path in (tmp_path / "a").iterdir()} == files


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_stored_codes_are_mapped_too(build_llama, tmp_path) -> None:
    model = build_llama()
    replace_linears(model, LINEARS, lambda _, old: Int8WeightLinear.from_dense(dense_weight(old)))
    save_folder(model, tmp_path / "a")
    mapped = load_llama(tmp_path / "a", mapped=True)
    assert all(is_mapped(tensor) for _, linear in named_linears(mapped) for tensor in linear.buffers())
    with torch.no_grad():
        assert torch.equal(mapped(IDS), model(IDS))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_shared_factor_is_mapped_once(tiny, tmp_path) -> None:
    save_folder(fuse(tiny), tmp_path / "a")
    mapped = load_llama(tmp_path / "a", mapped=True)
    assert all(is_mapped(weight) for weight in mapped.parameters() if weight.dim() == 2)
    assert mapped.layers[0].mlp.gate_proj.V is mapped.layers[0].mlp.up_proj.V
    with torch.no_grad():
        assert torch.equal(mapped(IDS), tiny(IDS))


def test_a_base_of_shared_factors_is_rounded_as_its_dense_weights_are(tiny, tmp_path) -> None:
    save_folder(fuse(tiny), tmp_path / "a")
    rounded = load_llama(tmp_path / "a", quantize=Int8WeightLinear.from_dense)
    for (path, linear), (_, old) in zip(named_linears(rounded), named_linears(tiny), strict=True):
        assert torch.equal(dense_weight(linear), dense_weight(Int8WeightLinear.from_dense(dense_weight(old)))), path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("tied", [False, True])
def test_16_bit_matrices_stay_in_their_file_beside_a_float32_stream(build_llama, tmp_path, tied) -> None:
    save_folder(build_llama(tied_embeddings=tied).bfloat16(), tmp_path / "a")
    mapped, copied = load_llama(tmp_path / "a", mapped=True), load_llama(tmp_path / "a")
    for name, weight in mapped.state_dict().items():
        assert is_mapped(weight) is (weight.dim() == 2), name
        assert weight.dtype == (torch.bfloat16 if weight.dim() == 2 else torch.float32), name
    assert (mapped.lm_head.weight is mapped.embed_tokens.weight) is tied
    with torch.no_grad():
        assert torch.equal(mapped(IDS), copied(IDS))
    for model in (mapped, copied):
        attach(model, SETTINGS, seed=0)
    for ours, theirs in zip(train(mapped), train(copied), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_16_bit_factors_are_not_widened_in_place(tiny, tmp_path) -> None:
    replace_linear(tiny, "layers.1.self_attn.o_proj", LowRankLinear(torch.randn(64, 3), torch.randn(3, 64)))
    save_folder(tiny.bfloat16(), tmp_path / "a")
    with pytest.raises(FormatError, match=r"o_proj.*: expected F32, to leave it in the file, got BF16"):
        load_llama(tmp_path / "a", mapped=True)


def test_what_would_need_a_copy_is_refused(tiny, tmp_path) -> None:
    save_folder(tiny, tmp_path / "a")
    with pytest.raises(
        FormatError, match=r"model\.embed_tokens\.weight: expected BF16, to leave it in the file, got F32"
    ):
        load_llama(tmp_path / "a", dtype=torch.bfloat16, mapped=True)
    with pytest.raises(UsageError, match="expected weights as they are stored, got a base to quantise"):
        load_llama(tmp_path / "a", quantize=Int8WeightLinear.from_dense, mapped=True)
    with pytest.raises(UsageError, match="expected the CPU, got cuda"):
        load_llama(tmp_path / "a", "cuda", mapped=True)
    header = read_header(tmp_path / "a")
    moved = tuple(replace(tensor, offset=tensor.offset + 1) for tensor in header.tensors)
    with pytest.raises(FormatError, match="expected a place aligned for F32"):
        load_llama(replace(header, tensors=moved), mapped=True)
    other = replace(header, stored=replace(header.stored, format="meta"))
    with pytest.raises(FormatError, match="expected a safetensors folder in Hugging Face's layout"):
        load_llama(other, mapped=True)


WATCH = """
import sys
from pathlib import Path
import torch
from puna.adaptation.targets import attach
from puna.arch.modules import LINEARS
from puna.model.linears.adapter import LoraSettings
from puna.model.llama import Llama
from puna.weights.loading import load_llama

def kilobytes(name):
    return int(open("/proc/self/status").read().partition(name)[2].split()[0])

def learn(folder):
    model = load_llama(Path(folder), dtype=torch.bfloat16, mapped=True)
    anonymous.append(kilobytes("RssAnon:"))
    attach(model, LoraSettings(rank=2, alpha=4.0, targets=LINEARS), seed=0)
    hidden = model.hidden(torch.arange(4)[None])
    anonymous.append(kilobytes("RssAnon:"))
    hidden.float().square().mean().backward()
    anonymous.append(kilobytes("RssAnon:"))
    return model

torch.set_num_threads(1)
anonymous = []
kept = learn(sys.argv[2])  # libraries and code are paged in
before, anonymous[:] = kilobytes("RssAnon:"), []
kept = learn(sys.argv[1])
print((max(anonymous) - before) * 1024, kilobytes("RssFile:") * 1024)
"""
SLACK = 32 << 20  # a product's own copies of one weight, the allocator's


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_learning_beside_a_mapped_base_takes_no_memory_of_its_own_for_it(tmp_path) -> None:
    tiny = find_preset("tiny").config
    config = replace(tiny, dim=1024, n_layers=6, n_heads=8, n_kv_heads=8, head_dim=128, ffn_dim=4096)
    for name, each in (("model", config), ("tiny", tiny)):
        with torch.device("meta"):
            model = Llama(each).to(torch.bfloat16)
        model.to_empty(device="cpu").requires_grad_(False)
        for weight in model.parameters():
            weight.fill_(weight.shape[-1] ** -0.5)
        save_folder(model, tmp_path / name)
    file_bytes = (tmp_path / "model" / "model.safetensors").stat().st_size
    largest = 2 * config.dim * config.ffn_dim
    command = [sys.executable, "-c", WATCH, tmp_path / "model", tmp_path / "tiny"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    anonymous, mapped = map(int, out.split())
    assert file_bytes > 200_000_000
    assert mapped > file_bytes  # the pages are in memory, and may be forgotten
    assert anonymous <= largest + SLACK < file_bytes / 4
