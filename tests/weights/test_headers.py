"""A checkpoint's header: where it is found, and that configuration and tensors agree name by name."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from puna.errors import FormatError
from puna.files import MANIFEST
from puna.weights.folder import save_folder
from puna.weights.headers import read_config, read_header


@pytest.fixture
def folder(tiny, tmp_path):
    """A saved tiny model without its seal, so that its files can be changed."""
    save_folder(tiny, tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / MANIFEST).unlink()
    return tmp_path / "run" / "model"


@pytest.fixture
def shards(tiny, tmp_path):
    save_folder(tiny, tmp_path / "shards", shard_bytes=60_000)
    return tmp_path / "shards"


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_folder_run_folder_and_config_file_say_the_same(folder, tiny):
    header = read_header(folder)
    assert header == read_header(folder.parent)
    assert header.format == "hf"
    assert header.config == tiny.config == read_config(folder / "config.json") == read_config(folder.parent)
    assert header.parameters == sum(weight.numel() for weight in tiny.parameters())
    bare = read_header(folder / "config.json")
    assert (bare.format, bare.tensors, bare.parameters) == ("config", (), header.parameters)


def test_shards_say_what_one_file_says(folder, shards):
    whole, split = read_header(folder), read_header(shards)
    assert len(split.files) > 3
    assert whole.parameters == split.parameters
    assert {(t.name, t.dtype, t.shape) for t in whole.tensors} == {(t.name, t.dtype, t.shape) for t in split.tensors}


def test_headers_are_read_without_torch(folder):
    code = (
        "import sys; from pathlib import Path; from puna.weights.headers import read_header\n"
        f"read_header(Path({str(folder)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(FormatError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*got nothing"):
        read_header(folder)


def test_an_extra_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(1)}))
    with pytest.raises(FormatError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        read_header(folder)


@pytest.mark.parametrize("wrong", [torch.zeros(65), torch.zeros(64, dtype=torch.int32), torch.zeros(64, 1)])
def test_a_tensor_of_another_shape_or_type_is_named(folder, wrong):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": wrong}))
    with pytest.raises(FormatError, match=r"model\.norm\.weight"):
        read_header(folder)


def test_old_rotary_buffers_are_dropped(folder):
    before = read_header(folder).parameters
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    assert read_header(folder).parameters == before


def test_an_index_that_differs_from_its_shards_is_refused(shards):
    index = shards / "model.safetensors.index.json"
    original = index.read_text()
    name, file = next(iter(json.loads(original)["weight_map"].items()))
    other = next(other for other in json.loads(original)["weight_map"].values() if other != file)
    for change in (
        lambda values: values["weight_map"].pop(name),
        lambda values: values["weight_map"].update({name: other}),
        lambda values: values["weight_map"].update({"more": file}),
        lambda values: values["weight_map"].update({name: 3}),
        lambda values: values["weight_map"].update({name: "absent.safetensors"}),
        lambda values: values.pop("weight_map"),
    ):
        index.write_text(original)
        edit_json(index, change)
        with pytest.raises(FormatError):
            read_header(shards)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "x.bin", "", "\0"])
def test_an_index_cannot_name_a_file_elsewhere(shards, name):
    def change(values):
        values["weight_map"][next(iter(values["weight_map"]))] = name

    edit_json(shards / "model.safetensors.index.json", change)
    with pytest.raises(FormatError, match="beside the index"):
        read_header(shards)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(FormatError, match="inside"):
        read_header(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_circle_of_links_and_a_pipe_are_refused(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to(folder / "again")
    (folder / "again").symlink_to(folder / name)
    with pytest.raises(FormatError):
        read_header(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(FormatError):
        read_header(folder)


def test_pickled_weights_beside_a_config_are_refused_by_name(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match="got a pickle"):
        read_header(folder)


def test_shards_beside_one_file_are_refused(folder):
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(FormatError, match="both"):
        read_header(folder)


def test_a_false_number_of_layers_is_refused_at_once(folder):
    edit_json(folder / "config.json", lambda values: values.update(num_hidden_layers=10**15))
    with pytest.raises(FormatError, match=r"model\.layers\.2\."):
        read_header(folder)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "consolidated.00.pt", "model.pth"])
def test_pickles_are_refused_by_name(tmp_path, file):
    (tmp_path / file).write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / file):
        with pytest.raises(FormatError, match=f"got a pickle, {file}") as caught:
            read_header(path)
        assert "safetensors" in caught.value.hint


@pytest.mark.parametrize("file", ["params.json", "consolidated.00.pth"])
def test_a_file_of_a_meta_folder_is_answered_with_the_folder(tmp_path, file):
    (tmp_path / file).write_text("{}")
    with pytest.raises(FormatError, match="got a file of it") as caught:
        read_header(tmp_path / file)
    assert str(tmp_path) in caught.value.hint


def test_a_folder_of_gguf_files_is_answered_with_a_file(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(FormatError, match="GGUF files") as caught:
        read_header(tmp_path)
    assert "x.gguf" in caught.value.hint
    with pytest.raises(FormatError, match="GGUF file"):
        read_header(tmp_path / "x.gguf")


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FormatError, match=r"no config\.json"):
        read_header(folder)
