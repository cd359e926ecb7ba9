"""Compression: smaller in the file and in the result, and honest about what it costs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from puna.compression.sizes import linear_bytes
from puna.errors import BadData, CheckpointMismatch, UsageError
from puna.evaluation.perplexity import evaluate_text
from puna.jobs.calibration import calibration_windows
from puna.jobs.compress import compress, compress_rows
from puna.jobs.compress_recipe import CompressRecipe
from puna.jobs.frontier import compare
from puna.jobs.layerwise import LayerNotice
from puna.jobs.load import load
from puna.jobs.run_folder import RunFolder
from puna.jobs.show import show
from puna.model.surgery import get_linear
from puna.weights.loading import weights_sha256
from puna.weights.safetensors_file import read_tensor_headers
from tests.chinese import check_chinese

IDS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def world(world, with_less_text, tmp_path_factory) -> SimpleNamespace:
    """The small world with less text: most of a compression's time is its statistics."""
    return with_less_text(world, tmp_path_factory.mktemp("less"), documents=32, lines=120)


def payload(model: Path) -> int:
    """Bytes of all tensors in a model's file."""
    headers, _ = read_tensor_headers(model / "model.safetensors")
    return sum(header.bytes for header in headers)


def recipe_for(world, **given) -> CompressRecipe:
    return CompressRecipe(**{"model": world.run / "model", "calibration": world.text, "evaluate": world.judge, **given})


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({"method": "svd", "calibration": None}, "svd"),
        ({}, "kfac"),
        ({"method": "asvd"}, "asvd"),
        ({"method": "whitened"}, "whitened"),
        ({"method": "kfac", "allocation": "greedy"}, "kfac"),
        ({"method": "svd", "allocation": "greedy"}, "svd"),
        ({"quantize": "int8", "calibration": None}, "int8"),
    ],
)
def test_what_is_said_to_be_smaller_is_smaller(world, runs: Path, given, method: str) -> None:
    result = compress(recipe_for(world, **given), runs / "a")
    assert (result.method, result.model) == (method, str(runs / "a" / "model"))
    assert payload(runs / "a" / "model") == result.bytes_after < result.bytes_before == payload(world.run / "model")
    assert result.parameters_after == sum(t.numel() for t in _stored(runs / "a"))
    assert result.added_nats_low <= result.added_nats <= result.added_nats_high
    before, after = load(world.run), load(runs / "a")
    text = world.judge.read_text()
    gained = [evaluate_text(model.llama, model.tokenizer, text).nats_per_token for model in (before, after)]
    assert gained[1] - gained[0] == pytest.approx(result.added_nats, abs=1e-6)
    assert bool(result.ranks) == (method != "int8")
    record = show(runs / "a").compression
    assert record is not None
    assert (record["method"], record["keep"]) == (method, None if method == "int8" else 0.8)
    assert record["base_sha256"] == weights_sha256(world.run / "model")
    assert (record["calibration_sha256"] is None) == (given.get("calibration", "") is None)
    assert all(isinstance(text, str) for row in compress_rows(result, "zh") for text in row)
    page = RunFolder(runs / "a").report.read_text()
    assert all(part in page for part in ("Compression: a", "Its size", "<svg"))
    assert ("What each matrix kept" in page) == bool(result.ranks)


def _stored(run: Path) -> list[torch.Tensor]:
    llama = load(run).llama
    return [
        *llama.parameters(),
        *(tensor for name, tensor in llama.named_buffers() if name != "position.frequencies_P"),
    ]


def test_keeping_everything_keeps_the_model(world, runs: Path) -> None:
    result = compress(recipe_for(world, keep=1.0), runs / "a")
    assert (result.added_nats, result.ranks, result.bytes_after) == (0.0, {}, result.bytes_before)
    with torch.no_grad():
        assert torch.equal(load(runs / "a")(IDS), load(world.run)(IDS))


def test_the_last_tenth_of_the_calibration_text_judges_where_no_other_does(world, runs: Path) -> None:
    result = compress(CompressRecipe(model=world.run / "model", calibration=world.text), runs / "a")
    assert result.method == "kfac"
    again = compress(CompressRecipe(model=world.run / "model", calibration=world.text), runs / "a", lang="zh")
    assert again.ranks == result.ranks
    check_chinese(runs / "a/report.html", "壓縮：a", "每個矩陣保留了多少", "損失隨秩（rank）降得多快")
    with pytest.raises(CheckpointMismatch, match="another recipe"):
        compress(CompressRecipe(model=world.run / "model", calibration=world.text, keep=0.5), runs / "a")


@pytest.mark.parametrize("given", [{}, {"method": "kfac", "allocation": "greedy"}])
@pytest.mark.parametrize("keep", [0.7, 0.4])
def test_the_budget_is_kept_and_nearly_spent(world, runs: Path, given, keep: float) -> None:
    result = compress(recipe_for(world, keep=keep, **given), runs / "a")
    dense = linear_bytes(load(world.run).llama)
    share = linear_bytes(load(runs / "a").llama) / dense
    assert keep - 0.1 < share <= keep
    assert result.bytes_before - result.bytes_after == round((1 - share) * dense)


def test_auto_shares_the_first_factor_of_what_reads_one_input(world, runs: Path) -> None:
    compress(recipe_for(world, keep=0.4), runs / "a")
    llama = load(runs / "a").llama
    gate, up = (get_linear(llama, f"layers.0.mlp.{name}") for name in ("gate_proj", "up_proj"))
    assert gate.V is up.V


@pytest.mark.parametrize(("method", "said"), [("auto", "tenth"), ("asvd", "dropped first"), ("svd", "")])
def test_less_text_than_inputs_are_wide_is_said(world, runs: Path, tmp_path: Path, method: str, said: str) -> None:
    (tmp_path / "short.txt").write_text(world.judge.read_text()[1000:1150])
    heard: list[LayerNotice] = []
    compress(
        recipe_for(world, method=method, calibration=tmp_path / "short.txt"), runs / "a", observers=(heard.append,)
    )
    assert [said in notice.message for notice in heard] == ([True] if said else [])


def test_a_compressed_model_can_be_compressed_again(world, runs: Path) -> None:
    first = compress(recipe_for(world, keep=0.6), runs / "a")
    second = compress(recipe_for(world, model=runs / "a" / "model", quantize="int8"), runs / "b")
    assert second.bytes_before == first.bytes_after
    assert payload(runs / "b" / "model") == second.bytes_after
    with pytest.raises(UsageError, match="compressed already"):
        compress(recipe_for(world, model=runs / "a" / "model", keep=0.8), runs / "c")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": 0.0}, "--keep: expected a share"),
        ({"keep": 1.1}, "--keep: expected a share"),
        ({"keep": float("nan")}, "--keep: expected a share"),
        ({"allocation": "greedy", "method": "svd", "calibration": None}, "--allocation greedy needs --calibration"),
        ({"calibration": None}, "--method auto needs --calibration"),
        ({"calibration": None, "evaluate": None, "method": "svd"}, "expected --calibration or --evaluate"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(world, given, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_for(world, **given)


def test_too_little_text_leaves_the_folder_free(world, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the llama")
    for given in ({"calibration": tmp_path / "short.txt", "evaluate": None}, {"evaluate": tmp_path / "short.txt"}):
        with pytest.raises(BadData):
            compress(recipe_for(world, **given), runs / "a")
    compress(recipe_for(world), runs / "a")


def test_all_ways_are_compared_on_the_same_text(world) -> None:
    loaded = load(world.run)
    texts = [path.read_text() for path in sorted(world.text.iterdir())]
    windows = calibration_windows(loaded.tokenizer, texts, 64)
    assert all(2 <= window.shape[1] <= 64 for window in windows)
    before = evaluate_text(loaded.llama, loaded.tokenizer, world.judge.read_text())
    found = compare(loaded.llama, loaded.tokenizer, windows, before, [world.judge.read_text()], (0.8, 0.4))
    assert [(each.method, each.keep) for each in found] == [
        ("svd", 0.8), ("svd", 0.4), ("whitened", 0.8), ("whitened", 0.4), ("int8", None),
    ]  # fmt: skip
    assert found[0].bytes == found[2].bytes > found[1].bytes
    assert found[3].added_nats < found[1].added_nats  # what the inputs use is kept
    assert evaluate_text(loaded.llama, loaded.tokenizer, world.judge.read_text()).nats == before.nats
    with pytest.raises(BadData, match="calibration"):
        calibration_windows(loaded.tokenizer, [""], 64)
