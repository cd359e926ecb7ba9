"""What doctor measures is kept, and the precision follows from it."""

import json
from dataclasses import asdict

import pytest
import torch

from puna.jobs import doctor as job
from puna.jobs.doctor import DoctorResult, choose_precision, doctor, product_flops


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Small products, counted; the cache in a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rates = {"float32": 100.0, "bfloat16": 131.0, "float16": 0.0, "int8": 1.0}
    asked: list[str] = []

    def rate(name: str, rows: int, device: torch.device) -> float:
        asked.append(name)
        return rates[name] * rows

    monkeypatch.setattr(job, "_rate", rate)
    monkeypatch.setattr(job, "_gradient_rate", lambda name, part, device: rates[name] * (10 if part == "output" else 1))
    monkeypatch.setattr(job, "_read_rate", lambda device: 5.0)
    return rates, asked, tmp_path / "cache"


def test_it_measures_once_and_reads_what_it_kept(quick) -> None:
    _, asked, cache = quick
    first = doctor()
    count = len(asked)
    assert doctor() == first
    assert len(asked) == count
    assert doctor(refresh=True) == first
    assert len(asked) == 2 * count
    assert [path.suffix for path in (cache / "puna").iterdir()] == [".json"]
    assert (first.torch, first.threads, first.devices[0]) == (torch.__version__, torch.get_num_threads(), "cpu")
    assert first.gemm_flops["float32"] == first.gemm_flops_by_rows["float32"]["512"] == 51200


@pytest.mark.parametrize(("rate", "chosen"), [(131.0, "bfloat16"), (129.0, "float32"), (0.0, "float32")])
def test_sixteen_bits_must_be_much_faster(quick, rate: float, chosen: str) -> None:
    quick[0]["bfloat16"] = rate
    assert choose_precision("auto") == chosen
    assert choose_precision("bfloat16") == "bfloat16"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"torch": 1}'])
def test_a_broken_cache_is_measured_anew(quick, text: str) -> None:
    result = doctor()
    [path] = (quick[2] / "puna").iterdir()
    path.write_text(text)
    assert doctor() == result
    assert DoctorResult(**json.loads(path.read_text())) == result


def test_a_cache_that_cannot_be_written_is_done_without(quick, tmp_path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert asdict(doctor())["read_bytes_per_second"] == 5.0


def test_one_slow_product_of_three_keeps_float32(quick, monkeypatch) -> None:
    def rate(name: str, part: str, device: torch.device) -> float:
        return 100.0 if name == "float32" else 10.0 if part == "input" else 1000.0

    monkeypatch.setattr(job, "_gradient_rate", rate)
    assert choose_precision("auto") == "float32"


def test_the_real_rates_are_plausible(monkeypatch) -> None:
    monkeypatch.setattr(job, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(job, "_WIDTH", 256)
    monkeypatch.setattr(job, "_GRADIENT_WIDTH", 64)
    assert all(job._gradient_rate("float32", part, torch.device("cpu")) > 1e3 for part in job._PARTS)
    assert job._rate("float32", 16, torch.device("cpu")) > 1e6
    assert job._rate("int8", 1, torch.device("cpu")) >= 0.0


def test_the_rate_of_products_is_the_kept_one_or_one_quick_measurement(quick) -> None:
    _, asked, _ = quick
    assert product_flops("bfloat16", torch.device("cpu")) == 131.0 * 512
    assert asked == ["bfloat16"]
    doctor()
    count = len(asked)
    assert product_flops("float32", job._device()) == 51200
    assert len(asked) == count


def test_the_best_of_several_passes_counts_and_the_slow_are_asked_once(quick, monkeypatch) -> None:
    asked: list[tuple[str, int]] = []

    def rate(name: str, rows: int, device: torch.device) -> float:
        asked.append((name, rows))
        return 1.0 if name == "int8" else 1e12 * len(asked)

    monkeypatch.setattr(job, "_rate", rate)
    found = doctor()
    assert asked.count(("int8", 512)) == 1
    assert asked.count(("float32", 512)) == job._PASSES
    last = max(number for number, key in enumerate(asked, 1) if key == ("float32", 512))
    assert found.gemm_flops["float32"] == 1e12 * last
