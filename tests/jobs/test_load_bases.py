"""puna.load(base=...): what is held in which type, as planned; never a dense model in memory; every format of a source."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from puna.adaptation.merge import merge
from puna.adaptation.targets import adapter_of, attach, named_loras
from puna.arch.config import ModelConfig
from puna.arch.modules import LINEARS
from puna.arch.presets import find_preset
from puna.compression.rounding import round_linears
from puna.errors import FormatError, UsageError
from puna.jobs.convert import convert
from puna.jobs.load import load
from puna.model.batch import Batch
from puna.model.linears.adapter import LoraSettings
from puna.model.linears.int8 import Int8Linear, Int8WeightLinear
from puna.model.linears.kind import dense_linear, dense_weight
from puna.model.linears.low_rank import LowRankLinear
from puna.model.linears.narrow import NarrowLinear
from puna.model.linears.nf4 import Nf4Linear
from puna.model.llama import Llama
from puna.model.surgery import named_linears, replace_linear, replace_linears
from puna.planning.memory import weight_bytes
from puna.planning.settings import Base
from puna.training.config import Precision
from puna.training.step import train_step
from puna.weights.adapters import save_adapter
from puna.weights.folder import save_folder
from puna.weights.meta import MetaSettings

IDS = torch.arange(20)[None]
KINDS = {"int8": Int8WeightLinear, "nf4": Nf4Linear}
LORA = LoraSettings(rank=2, alpha=4.0, targets=LINEARS)


def stored_bytes(model: Llama) -> int:
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values()) - model.position.frequencies_P.nbytes


def rounded(model: Llama, base: str) -> Llama:
    """The model after the fact: every block Linear made from its whole dense weight."""
    replace_linears(model, LINEARS, lambda _, old: KINDS[base].from_dense(dense_weight(old)))
    return model


@pytest.fixture
def folders(build_llama: Callable[..., Llama], tmp_path: Path) -> Callable[..., Path]:
    """`folders(dtype, **changes)`: a folder of the tiny model in that type."""

    def save(dtype: torch.dtype = torch.float32, **changes: object) -> Path:
        save_folder(build_llama(**changes).to(dtype), tmp_path / str(dtype))
        return tmp_path / str(dtype)

    return save


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8", "nf4"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_16_bit_file_is_held_in_the_bytes_that_are_planned(folders, base: str, tied: bool) -> None:
    llama = load(folders(torch.bfloat16, tied_embeddings=tied), base=base).llama
    assert stored_bytes(llama) == weight_bytes(llama.config, base)
    rest = torch.float32 if base == "float32" else torch.bfloat16
    assert {weight.dtype for weight in llama.parameters()} == {rest}
    assert (llama.lm_head.weight is llama.embed_tokens.weight) == tied
    if base != "float32":
        wide = load(folders(torch.bfloat16, tied_embeddings=tied), base=base, dtype=torch.float32).llama
        assert stored_bytes(wide) == weight_bytes(llama.config, base, is_wide=True)


@pytest.mark.parametrize("base", ["int8", "nf4"])
@pytest.mark.parametrize(("stored", "rest"), [
    (torch.float32, torch.float32), (torch.float16, torch.bfloat16), (torch.bfloat16, torch.bfloat16),
])  # fmt: skip
def test_what_is_not_quantised_takes_16_bits_where_the_file_has_them_or_the_type_asked_for(
    folders, base: str, stored: torch.dtype, rest: torch.dtype
) -> None:
    folder = folders(stored)
    assert {weight.dtype for weight in load(folder, base=base).llama.parameters()} == {rest}
    asked = load(folder, base=base, dtype=torch.float16).llama
    assert {weight.dtype for weight in asked.parameters()} == {torch.float16}
    assert {type(linear) for _, linear in named_linears(asked)} == {KINDS[base]}


@torch.no_grad()
def test_a_bfloat16_base_multiplies_in_float32_where_that_is_asked_for(folders, tiny: Llama) -> None:
    llama = load(folders(), base="bfloat16", dtype=torch.float32).llama
    assert {type(linear) for _, linear in named_linears(llama)} == {NarrowLinear}
    assert {weight.dtype for _, linear in named_linears(llama) for weight in linear.parameters()} == {torch.bfloat16}
    replace_linears(tiny, LINEARS, lambda _, old: dense_linear(dense_weight(old).bfloat16().float()))
    assert torch.equal(llama(IDS), tiny(IDS))


@torch.no_grad()
def test_what_was_stored_in_int8_multiplies_as_asked(tiny: Llama, tmp_path: Path) -> None:
    round_linears(tiny, "int8")
    save_folder(tiny, tmp_path / "a")
    weights_alone = load(tmp_path / "a")
    assert torch.equal(weights_alone(IDS), tiny(IDS))
    replace_linears(tiny, LINEARS, lambda _, old: dense_linear(dense_weight(old)))
    assert torch.equal(weights_alone(IDS), tiny(IDS))
    assert {type(linear) for _, linear in named_linears(load(tmp_path / "a", base="int8").llama)} == {Int8WeightLinear}
    asked = load(tmp_path / "a", base="int8", integer_products=True).llama
    assert {type(linear) for _, linear in named_linears(asked)} == {Int8Linear}


@pytest.mark.parametrize("base", ["int8", "nf4"])
@torch.no_grad()
def test_rounding_while_loading_is_rounding_afterwards(folders, tiny: Llama, base: str) -> None:
    assert torch.equal(load(folders(), base=base)(IDS), rounded(tiny, base)(IDS))


@pytest.mark.parametrize("base", ["bfloat16", "int8", "nf4"])
@torch.no_grad()
def test_every_format_gives_the_same_model(folders, tmp_path: Path, base: str) -> None:
    folder = folders(torch.bfloat16)
    convert(folder, tmp_path / "meta", "meta")
    convert(folder, tmp_path / "a.gguf", "gguf")
    expected = load(folder, base=base).llama.state_dict()
    for source in (tmp_path / "meta", tmp_path / "a.gguf"):
        got = load(source, base=base, meta=MetaSettings(meta_max_seq_len=256)).llama.state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected), source


@torch.no_grad()
def test_blocks_of_a_gguf_are_quantised_from_what_they_stand_for(folders, tmp_path: Path) -> None:
    convert(folders(), tmp_path / "a.gguf", "gguf", dtype="q8_0")
    dense, llama = load(tmp_path / "a.gguf").llama, load(tmp_path / "a.gguf", base="nf4", dtype=torch.float32).llama
    assert torch.equal(llama(IDS), rounded(dense, "nf4")(IDS))
    assert load(tmp_path / "a.gguf", base="nf4").llama.dtype == torch.bfloat16


@pytest.mark.parametrize("base", ["int8", "nf4"])
@torch.no_grad()
def test_what_was_stored_as_factors_or_int8_is_quantised_from_its_dense_weight(tiny, tmp_path: Path, base: str) -> None:
    round_linears(tiny, "int8")
    replace_linear(tiny, "layers.1.self_attn.o_proj", LowRankLinear(torch.randn(64, 3), torch.randn(3, 64)))
    save_folder(tiny, tmp_path / "small")
    assert {type(linear) for _, linear in named_linears(load(tmp_path / "small").llama)} == {
        Int8WeightLinear,
        LowRankLinear,
    }
    torch.testing.assert_close(load(tmp_path / "small", base=base)(IDS), rounded(tiny, base)(IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", ["bfloat16", "int8", "nf4"])
@torch.no_grad()
def test_an_adapter_stands_beside_the_base_and_merges_into_what_the_base_stands_for(
    folders, build_llama: Callable[..., Llama], tmp_path: Path, base: str
) -> None:
    folder, other = folders(), build_llama()
    attach(other, LORA, seed=3)
    for _, lora in named_loras(other):
        lora.B.fill_(0.01)
    save_adapter(adapter_of(other), tmp_path / "adapter", base=str(folder))
    alone, attached = load(folder, base=base).llama, load(folder, adapter=tmp_path / "adapter", base=base).llama
    for (path, lora), (_, linear) in zip(named_loras(attached), named_linears(alone), strict=True):
        assert type(lora.base) is type(linear) is KINDS.get(base, nn.Linear)
        assert torch.equal(lora.dense_weight(), dense_weight(linear) + lora.scale * (lora.B @ lora.A)), path
    expected = {path: lora.dense_weight() for path, lora in named_loras(attached)}
    merge(attached)
    for path, linear in named_linears(attached):
        assert torch.equal(linear.weight, expected[path].to(attached.dtype)), path


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8", "nf4"])
def test_an_adapter_trains_in_float32_beside_every_base_and_the_base_stays(
    folders: Callable[..., Path], base: Base, precision: Precision
) -> None:
    llama = load(folders(torch.bfloat16), base=base).llama
    with torch.no_grad():
        alone = llama(IDS)
        attach(llama, LORA, seed=0)
        assert torch.equal(llama(IDS), alone)
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    adapter = {name: weight for name, weight in llama.named_parameters() if weight.requires_grad}
    assert len(adapter) == 2 * len(dict(named_linears(llama)))
    optimizer, batch = torch.optim.AdamW(adapter.values()), Batch(ids_BT=IDS, targets_BT=IDS.roll(-1, 1))
    first, *_, last = (
        train_step(llama, optimizer, [batch], rate=1e-2, clip=1.0, precision=precision) for _ in range(12)
    )
    assert first is not None
    assert last is not None
    assert last.nats < 0.9 * first.nats
    changed = {name for name, tensor in llama.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == adapter.keys()
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert {tensor.dtype for tensor in (*adapter.values(), *moments)} == {torch.float32}
    assert llama.hidden(IDS).dtype == llama.embed_tokens.weight.dtype


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_number_that_is_none_is_refused_by_name(build_llama: Callable[..., Llama], tmp_path: Path, base: str) -> None:
    model = build_llama()
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    save_folder(model, tmp_path / "a")
    with pytest.raises(FormatError, match=r"layers\.1\.mlp\.up_proj"):
        load(tmp_path / "a", base=base)


def test_what_does_not_exist_or_fit_together_is_refused(folders) -> None:
    folder = folders()
    with pytest.raises(UsageError, match="nf5") as caught:
        load(folder, base="nf5")  # type: ignore[arg-type]
    assert "nf4" in caught.value.hint
    with pytest.raises(UsageError, match=r"base bfloat16: expected products in torch\.bfloat16, got torch\.float16"):
        load(folder, base="bfloat16", dtype=torch.float16)


@pytest.mark.parametrize("base", ["int8", "nf4"])
@torch.no_grad()
def test_a_rounded_base_can_be_stored_as_it_is(folders, tmp_path: Path, base: str) -> None:
    llama = load(folders(), base=base).llama
    save_folder(llama, tmp_path / "again")
    assert torch.equal(load(tmp_path / "again", dtype=llama.dtype)(IDS), llama(IDS).float())


WATCH = """
import sys, threading, time
import torch
from puna.jobs.load import load

def anonymous():
    return int(open("/proc/self/status").read().partition("RssAnon:")[2].split()[0]) * 1024

def watch():
    while not ended.is_set():
        seen.append(anonymous())
        time.sleep(0.002)

torch.set_num_threads(1)
load(sys.argv[2], base=sys.argv[3])  # libraries and code are paged in
seen, ended = [], threading.Event()
thread = threading.Thread(target=watch)
before = anonymous()
thread.start()
loaded = load(sys.argv[1], base=sys.argv[3])
ended.set()
thread.join()
print(max(seen) - before, anonymous() - before, len(seen))
"""
SLACK = 48 << 20  # temporaries of a slice (25 MB), what the allocator keeps of them, the watching thread


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelConfig]:
    """A folder with `model`, 200 MB in bfloat16, and `tiny`; and the numbers of the former."""
    folder, tiny = tmp_path_factory.mktemp("large"), find_preset("tiny").config
    config = replace(tiny, dim=1024, n_layers=6, n_heads=8, n_kv_heads=8, head_dim=128, ffn_dim=4096)
    for name, each in (("model", config), ("tiny", tiny)):
        model = Llama(each).to(torch.bfloat16)
        save_folder(model, folder / name)
    return folder, config


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_memory_grows_by_the_quantised_model_and_one_tensor(large: tuple[Path, ModelConfig], base: str) -> None:
    folder, config = large
    command = [sys.executable, "-c", WATCH, folder / "model", folder / "tiny", base]
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # else glibc keeps up to 32 MiB of freed blocks
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=given_back).stdout
    peak, held, samples = map(int, out.split())
    assert samples > 100
    quantised, dense = weight_bytes(config, base), weight_bytes(config, "bfloat16")
    largest = 2 * config.dim * config.ffn_dim
    assert quantised + largest + SLACK < dense
    assert 0.7 * quantised < held <= peak <= quantised + largest + SLACK
