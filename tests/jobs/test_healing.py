"""Healing as a part of puna compress: better, no larger, and interrupted without a trace."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from puna.errors import BadData, UsageError
from puna.files import sha256_file
from puna.jobs.compress import compress, compress_rows
from puna.jobs.compress_recipe import CompressRecipe, compress_recipe
from puna.jobs.healing import healing_rows
from puna.jobs.load import load
from puna.jobs.recipe import dump_recipe
from puna.jobs.run_folder import RunFolder
from puna.training.config import EpochBudget, StepBudget, TimeBudget, TrainingConfig
from puna.training.events import StepEvent
from tests.chinese import check_chinese

HEALING = TrainingConfig(
    budget=StepBudget(steps=12), batch=4, micro_batch=2, seq=64, weight_decay=0.0, learning_rate=3e-4,
    validate_every=4, checkpoint_every=4,
)  # fmt: skip
FACTORS = "model/model.safetensors"


def recipe_for(world, **given) -> CompressRecipe:
    given = {
        "model": world.run / "model",
        "calibration": world.text,
        "evaluate": world.judge,
        "keep": 0.1,
        "method": "svd",
        **given,
    }
    return CompressRecipe(**given)


@pytest.fixture(scope="module")
def healed(world, tmp_path_factory):
    """(result, its folder) of an uninterrupted run."""
    out = tmp_path_factory.mktemp("healed") / "a"
    return compress(recipe_for(world, healing=HEALING), out), out


def test_healing_gains_and_stores_no_more(world, healed, runs: Path) -> None:
    result, out = healed
    plain = compress(recipe_for(world), runs / "a")
    assert result.healing is not None
    assert result.healing.kl_after < result.healing.kl_before
    assert 0 < result.healing.step <= result.healing.steps == 12
    assert result.added_nats < plain.added_nats
    assert (result.bytes_after, result.ranks) == (plain.bytes_after, plain.ranks)
    assert plain.healing is None
    for lang in ("en", "zh"):
        assert f"{result.healing.kl_after:.4f}" in dict(compress_rows(result, lang)).get(
            {"en": "healing", "zh": "修復訓練（healing）"}[lang], ""
        )
    first = json.loads(RunFolder(out).metrics.read_text().splitlines()[0])
    assert first["nats"] < 3 * result.healing.kl_before < 1  # a divergence is learned, not the text
    page = RunFolder(out).report.read_text()
    assert "KL to the dense model" in page
    before, after = load(world.run).llama, load(out).llama
    assert all(map(_equal, (before.embed_tokens, before.norm), (after.embed_tokens, after.norm)))


def _equal(first: nn.Module, second: nn.Module) -> bool:
    return bool((first.weight == second.weight).all())


def test_an_interrupted_healing_ends_with_the_same_bits(world, healed, runs: Path) -> None:
    def stop(event: StepEvent) -> None:
        if event.step == 6:
            raise KeyboardInterrupt

    recipe = recipe_for(world, healing=HEALING)
    with pytest.raises(KeyboardInterrupt):
        compress(recipe, runs / "a", observers=(stop,), lang="zh")
    check_chinese(runs / "a/report.html", "仍在執行", "它是怎麼學會的")
    result = compress(recipe, runs / "a")
    assert sha256_file(runs / "a" / FACTORS) == sha256_file(healed[1] / FACTORS)
    assert result.healing is not None
    assert replace(result.healing, seconds=0.0) == replace(healed[0].healing, seconds=0.0)


def test_what_healing_makes_worse_is_taken_back(world, runs: Path) -> None:
    wild = replace(HEALING, budget=StepBudget(steps=4), learning_rate=30.0, clip=1e9)
    result = compress(recipe_for(world, healing=wild), runs / "a")
    assert result.healing is not None
    assert (result.healing.step, result.healing.kl_after) == (0, result.healing.kl_before)
    assert sha256_file(runs / "a" / FACTORS) == sha256_file(_model(compress(recipe_for(world), runs / "b").model))


def _model(folder: str) -> Path:
    return Path(folder) / "model.safetensors"


def test_epochs_become_steps_and_too_little_text_is_refused(world, runs: Path, tmp_path: Path) -> None:
    result = compress(recipe_for(world, healing=replace(HEALING, budget=EpochBudget(epochs=0.2))), runs / "a")
    assert result.healing is not None
    tokenizer = load(world.run).tokenizer
    rows = healing_rows([tokenizer.encode(path.read_text(), bos=True) for path in sorted(world.text.iterdir())], 64)
    learned = len(rows) - len(rows[:: max(16, -(-len(rows) // 32))])
    assert result.healing.steps == -(-learned // (4 * 5))
    (tmp_path / "short.txt").write_text("the llama and the alpaca")
    with pytest.raises(BadData, match="at least 2 rows"):
        compress(recipe_for(world, calibration=tmp_path / "short.txt", healing=HEALING), runs / "b")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quantize": "int8", "keep": None, "method": "auto"}, "--heal beside --quantize alone"),
        ({"method": "svd", "calibration": None}, "--heal needs --calibration"),
        ({"keep": 1.0}, "--heal beside --keep 1"),
        ({"healing": replace(HEALING, packing="documents")}, "healing.packing: expected none"),
        ({"healing": replace(HEALING, lora_b_ratio=16.0)}, "healing.lora_b_ratio: expected none"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(world, given, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_for(world, **{"healing": HEALING, **given})


def test_defaults_then_recipe_then_settings_then_flags(world, tmp_path: Path) -> None:
    model, text = str(world.run / "model"), world.text
    plain = compress_recipe(model=model, training={}, calibration=text, keep=0.6)
    assert plain == CompressRecipe(model=world.run / "model", calibration=text, keep=0.6)
    flags = {"budget": {"kind": "seconds", "seconds": 5.0}, "batch": 2}
    file = tmp_path / "heal.toml"
    file.write_text("schema = 1\nkeep = 0.3\n[healing]\nbatch = 4\nseq = 32\nlearning_rate = 0.5\n")
    full = compress_recipe(
        model=model, training=flags, recipe=file, settings=["healing.seq=48"], calibration=text, keep=None
    )  # fmt: skip
    assert full.healing is not None
    assert full.keep == 0.3
    assert (full.healing.batch, full.healing.micro_batch, full.healing.seq) == (2, 2, 48)
    assert (full.healing.learning_rate, full.healing.budget) == (0.5, TimeBudget(seconds=5.0))
    (tmp_path / "recipe.toml").write_text(dump_recipe(full))
    assert (
        compress_recipe(model=model, training={}, recipe=tmp_path / "recipe.toml") == full
    )  # what a stopped page names
    with pytest.raises(UsageError, match="--learning-rate is of healing"):
        compress_recipe(model=model, training={"learning_rate": 1.0}, calibration=text)
