"""puna weights show: the same numbers whatever holds the model, and no torch."""

import subprocess
import sys
from dataclasses import asdict

import pytest

from puna.arch.presets import PRESETS
from puna.errors import FormatError
from puna.jobs.show import show
from puna.weights.folder import save_folder
from tests.fused import fuse


def test_a_folder_shows_its_config_and_every_tensor(tiny, tmp_path):
    save_folder(tiny, tmp_path / "run" / "model")
    result = show(tmp_path / "run")
    assert (result.format, result.config) == ("hf", asdict(tiny.config))
    assert result.parameters == sum(weight.numel() for weight in tiny.parameters())
    assert sum(row.bytes for row in result.tensors) == 4 * result.parameters
    assert {row.dtype for row in result.tensors} == {"F32"}
    bare = show(tmp_path / "run" / "model" / "config.json")
    assert (bare.format, bare.parameters, bare.tensors) == ("config", result.parameters, ())


def test_a_preset_shows_its_count():
    assert show("llama-3-8b").parameters == 8_030_261_248
    assert show("llama-3-8b").config == asdict(PRESETS["llama-3-8b"].config)


def test_nothing_there_is_refused(tmp_path):
    with pytest.raises(FormatError):
        show(tmp_path / "absent")


def test_no_torch_is_imported():
    code = "import sys; from puna.jobs.show import show; show('tiny'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_says_what_is_not_dense_and_where_it_came_from(tiny, tmp_path):
    record = {"method": "whitened", "keep": 0.5, "calibration_sha256": None, "base_sha256": "ab"}
    save_folder(fuse(tiny), tmp_path / "a", record=record)
    result = show(tmp_path / "a")
    assert (result.format, result.linears, result.compression) == ("puna", {"dense": 4, "fused": 10}, record)
    assert result.parameters == sum(weight.numel() for weight in tiny.parameters())
    assert sum(row.bytes for row in result.tensors) == 4 * result.parameters
    assert show("tiny").linears == {"dense": 14}
