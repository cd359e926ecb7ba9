"""Model folders with factored tables: stored as factors, shared where tied, dense for other tools, refused where they lie."""

import json

import pytest
import torch

from puna.adaptation.targets import attach
from puna.compression.embeddings import factor_tables
from puna.compression.sizes import stored_parameters
from puna.errors import FormatError, UsageError
from puna.files import MANIFEST
from puna.model.linears.adapter import LoraSettings
from puna.weights.conversion import convert_checkpoint
from puna.weights.folder import save_folder
from puna.weights.headers import read_header
from puna.weights.loading import load_llama

IDS = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("tied", "tables"), [(True, "both"), (False, "both"), (False, "input"), (False, "head")])
def test_factored_tables_come_back_and_become_dense(build_llama, tmp_path, tied, tables):
    model = build_llama(tied_embeddings=tied)
    factor_tables(model, 20, None, "plain", tables)
    save_folder(model, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["model_type"] == "puna"
    assert config["puna"]["embedding"] == ({"kind": "dense"} if tables == "head" else {"kind": "pca", "rank": 20})
    loaded = load_llama(tmp_path / "a")
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    if tied:
        assert loaded.lm_head.U is loaded.embed_tokens.Z
    with torch.no_grad():
        assert torch.equal(loaded(IDS), model(IDS))
    save_folder(loaded, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    assert read_header(tmp_path / "a").parameters == stored_parameters(model)
    done = convert_checkpoint(read_header(tmp_path / "a"), tmp_path / "hf", "hf")
    assert any("logits of a position" in notice for notice in done.notices) == tied
    dense = load_llama(tmp_path / "hf")
    with torch.no_grad():
        assert (dense(IDS).log_softmax(-1) - model(IDS).log_softmax(-1)).abs().max() < 1e-4


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_no_adapter_stands_beside_a_factored_table(tiny, target):
    factor_tables(tiny, 20, None, "plain")
    with pytest.raises(UsageError, match="expected dense tables"):
        attach(tiny, LoraSettings(rank=2, alpha=2.0, targets=(target,)), seed=0)


@pytest.mark.parametrize(
    "wrong", [{"kind": "pca"}, {"kind": "pca", "rank": 0}, {"kind": "dense", "rank": 2}, {"kind": "svd"}, None]
)
def test_an_embedding_of_another_kind_is_refused(tiny, tmp_path, wrong):
    factor_tables(tiny, 20, None, "plain")
    save_folder(tiny, tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    config["puna"]["embedding"] = wrong
    path.write_text(json.dumps(config))
    with pytest.raises(FormatError, match="embedding"):
        load_llama(tmp_path / "a")
