"""What doctor keeps is found without torch: of this processor and this torch alone."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from puna.jobs.doctor import doctor
from puna.jobs.measured import measured_rates
from puna.jobs.plan import plan
from puna.jobs.plan_table import plan_rows


@pytest.fixture
def cache(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with what doctor measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(measured))
    kept = asdict(doctor())
    (tmp_path / "puna").mkdir()
    path = tmp_path / "puna" / "doctor-0.json"
    path.write_text(json.dumps(kept | {"devices": ["cpu"]}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return path


def test_a_plan_says_how_long_a_step_takes_here(cache: Path) -> None:
    result = plan("small", train="full", batch=4, seq=128)
    assert result.seconds_per_step is not None
    assert result.seconds_per_step > 0
    assert any(name == "seconds a step, here" for name, _ in plan_rows([result]))
    assert plan("small").seconds_per_step is None


def test_most_threads_count(cache: Path) -> None:
    kept = json.loads(cache.read_text())
    cache.with_name("doctor-1.json").write_text(json.dumps(kept | {"threads": 99, "read_bytes_per_second": 7.0}))
    rates = measured_rates()
    assert rates is not None
    assert rates.read_bytes_per_second == 7.0


@pytest.mark.parametrize("other", [{"torch": "1"}, {"processor": "another"}, {"devices": ["cpu", "a card"]}])
def test_another_machine_is_not_this_one(cache: Path, other: dict[str, object]) -> None:
    cache.write_text(json.dumps(json.loads(cache.read_text()) | other))
    assert measured_rates() is None


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_cache_or_none_is_no_measurement(cache: Path, text: str) -> None:
    assert torch.__version__ == json.loads(cache.read_text())["torch"]
    cache.write_text(text)
    assert measured_rates() is None
    cache.unlink()
    assert plan("small", train="full").seconds_per_step is None
