"""Seeded mutations of a tiny model's files: our errors or the right model, never another exception, never a wrong one."""

import contextlib
import json
import random
from pathlib import Path

import pytest
import torch

from puna.arch.config import ModelConfig
from puna.errors import FormatError, PunaError
from puna.files import MANIFEST
from puna.model.init import initialise
from puna.model.linears.adapter import Adapter, LoraSettings
from puna.model.llama import Llama
from puna.weights.adapters import load_adapter, save_adapter
from puna.weights.folder import save_folder
from puna.weights.loading import load_llama
from tests.mutations import mutate

COUNT = 400
JUNK = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -1e308, "", "0", "\0", [], [1], [[]], {}, {"a": 1}]
SIZES = {"vocab_size": 16, "dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "ffn_dim": 8}


@pytest.fixture
def folder(tmp_path):
    model = initialise(Llama(ModelConfig(**SIZES, max_seq_len=16, tied_embeddings=True)), 0)
    save_folder(model, tmp_path / "model")
    return tmp_path / "model"


def load_or_refuse(folder: Path) -> Llama | None:
    try:
        return load_llama(folder)
    except FormatError:
        return None


def test_mutated_configs_are_refused_or_give_a_model_that_runs(folder):
    (folder / MANIFEST).unlink()
    path, rng = folder / "config.json", random.Random(0)
    original, ids, loaded = path.read_bytes(), torch.tensor([[1, 2, 3]]), 0
    for _ in range(COUNT):
        path.write_bytes(mutate(original, rng))
        model = load_or_refuse(folder)
        if model is not None:
            loaded += 1
            assert model(ids).shape == (1, 3, 16)
    assert 0 < loaded < COUNT / 2


def test_junk_under_any_config_key_is_refused_or_gives_a_model_that_runs(folder):
    (folder / MANIFEST).unlink()
    path, ids = folder / "config.json", torch.tensor([[1, 2, 3]])
    values = json.loads(path.read_bytes())
    for key in values:
        for junk in (*JUNK, {**values["rope_parameters"], "rope_theta": 10**400}):
            path.write_text(json.dumps({**values, key: junk}))
            model = load_or_refuse(folder)
            assert model is None or model(ids).shape == (1, 3, 16)


def test_mutated_safetensors_headers_are_refused_or_change_nothing(folder):
    (folder / MANIFEST).unlink()
    path, rng = folder / "model.safetensors", random.Random(1)
    original, truth = path.read_bytes(), load_llama(folder).state_dict()
    header_bytes = 8 + int.from_bytes(original[:8], "little")
    loaded = 0
    for _ in range(COUNT):
        path.write_bytes(mutate(original[:header_bytes], rng) + original[header_bytes:])
        model = load_or_refuse(folder)
        if model is not None:
            loaded += 1
            assert all(torch.equal(tensor, truth[name]) for name, tensor in model.state_dict().items())
    assert loaded < COUNT / 10


def accepted_mutations(folder: Path, files: list[Path], rng: random.Random) -> list[str]:
    accepted = []
    for _ in range(COUNT):
        path = rng.choice(files)
        original = path.read_bytes()
        changed = mutate(original, rng)
        path.write_bytes(changed)
        try:
            load_llama(folder)
            if changed != original:
                accepted.append(path.name)
        except PunaError:
            pass
        path.write_bytes(original)
    load_llama(folder)
    return accepted


def test_no_mutation_of_a_sealed_file_is_accepted(folder):
    files = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    assert accepted_mutations(folder, files, random.Random(2)) == []


def test_no_mutation_of_the_seal_itself_is_accepted(folder):
    assert accepted_mutations(folder, [folder / MANIFEST], random.Random(2)) == []


def test_mutated_adapters_are_refused_or_read(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 8, generator=generator), torch.randn(8, 2, generator=generator)
    settings = LoraSettings(rank=2, alpha=4.0, targets=("q_proj",))
    adapter = Adapter(settings=settings, tensors={"layers.0.self_attn.q_proj": pair})
    save_adapter(adapter, tmp_path / "a", base="base")
    (tmp_path / "a" / MANIFEST).unlink()
    rng = random.Random(3)
    for path in sorted((tmp_path / "a").iterdir()):
        original = path.read_bytes()
        for _ in range(COUNT // 2):
            path.write_bytes(mutate(original, rng))
            try:
                found = load_adapter(tmp_path / "a")
            except FormatError:
                continue
            assert found.tensors.keys() == adapter.tensors.keys()
        path.write_bytes(original)
    values = json.loads((tmp_path / "a" / "adapter_config.json").read_bytes())
    for key in values:
        for junk in JUNK:
            (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**values, key: junk}))
            with contextlib.suppress(FormatError):
                load_adapter(tmp_path / "a")
