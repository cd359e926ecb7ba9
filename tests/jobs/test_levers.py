"""Levers of a compression one after another: fewer heads, low rank, healing, bits; each judged, all in one model."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from puna.arch.rounding import Rounding
from puna.compression.sizes import stored_bytes
from puna.errors import UsageError
from puna.evaluation.perplexity import evaluate_text
from puna.files import sha256_file
from puna.jobs.compress import compress, compress_rows
from puna.jobs.compress_recipe import CompressRecipe, compress_recipe
from puna.jobs.load import load
from puna.jobs.recipe import dump_recipe
from puna.jobs.run_folder import RunFolder
from puna.jobs.show import show
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.rounded_low_rank import RoundedLowRankLinear
from puna.model.surgery import named_linears
from puna.training.config import StepBudget, TrainingConfig
from puna.training.events import StepEvent

HEALING = TrainingConfig(
    budget=StepBudget(steps=8), batch=4, micro_batch=4, seq=64, weight_decay=0.0, learning_rate=1e-5, validate_every=4,
    checkpoint_every=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(world, with_less_text, tmp_path_factory) -> SimpleNamespace:
    """The small world with less text: most of a compression's time is its statistics."""
    return with_less_text(world, tmp_path_factory.mktemp("less"), documents=32, lines=120)


def recipe_for(world, **given) -> CompressRecipe:
    given = {
        "model": world.run / "model",
        "calibration": world.text,
        "evaluate": world.judge,
        "kv_heads": 1,
        **given,
    }
    return CompressRecipe(**given)


@pytest.fixture(scope="module")
def pooled(world, tmp_path_factory):
    """(result, folder) of fewer heads alone."""
    out = tmp_path_factory.mktemp("pooled") / "a"
    return compress(recipe_for(world), out), out


def test_fewer_heads_alone_are_a_plain_llama(world, pooled) -> None:
    result, out = pooled
    before, after = load(world.run), load(out)
    assert (before.config.n_kv_heads, after.config) == (2, replace(before.config, n_kv_heads=1))
    assert show(out).compression is None  # nothing but Llama is stored
    assert (result.method, result.ranks, [lever.name for lever in result.levers]) == ("joint", {}, ["kv_heads"])
    assert (result.cache_bytes_before, result.cache_bytes_after) == (2 * 2 * 2 * 16 * 4, 2 * 2 * 1 * 16 * 4)
    assert result.bytes_after == stored_bytes(after.llama) == result.levers[0].bytes < result.bytes_before
    text = world.judge.read_text()
    gained = [evaluate_text(model.llama, model.tokenizer, text).nats_per_token for model in (before, after)]
    assert gained[1] - gained[0] == pytest.approx(result.added_nats, abs=1e-6)
    for lang, row in (("en", "cache of a token"), ("zh", "每個詞元的快取")):
        assert dict(compress_rows(result, lang))[row] == "512 B → 256 B"
    page = RunFolder(out).report.read_text()
    assert all(part in page for part in ("One lever after another", "fewer key-value heads", "Cache, a token"))


def test_every_lever_is_judged_in_turn(world, pooled, runs: Path) -> None:
    recipe = recipe_for(world, keep=0.5, method="whitened")
    result = compress(recipe, runs / "a")
    assert result.method == "joint+whitened"
    assert [lever.name for lever in result.levers] == ["kv_heads", "low_rank"]
    assert result.levers[0] == pooled[0].levers[0]
    assert result.levers[-1].added_nats == result.added_nats
    assert all(first.bytes > second.bytes for first, second in pairwise(result.levers))
    again = compress(recipe_for(world, model=runs / "a" / "model", kv_heads=None, quantize="int8"), runs / "b")
    assert again.method == "int8"
    with pytest.raises(UsageError, match="compressed already"):
        compress(recipe_for(world, model=runs / "a" / "model"), runs / "d")
    rounded = compress(recipe_for(world, quantize="int8", pooling="aligned"), runs / "c")
    assert rounded.method == "aligned+int8"
    assert [lever.name for lever in rounded.levers] == ["kv_heads", "bits"]
    assert load(runs / "c").config.n_kv_heads == 1


def test_healing_trains_the_whole_model_of_fewer_heads(world, pooled, runs: Path) -> None:
    recipe = recipe_for(world, healing=HEALING)
    result = compress(recipe, runs / "a")
    assert [lever.name for lever in result.levers] == ["kv_heads", "healing"]
    assert result.healing is not None
    assert result.healing.kl_after < result.healing.kl_before
    assert result.added_nats < pooled[0].added_nats == result.levers[0].added_nats
    healed = load(runs / "a").llama
    assert result.healing.parameters == sum(weight.numel() for weight in healed.parameters())
    assert not (healed.embed_tokens.weight == load(world.run).llama.embed_tokens.weight).all()

    def stop(event: StepEvent) -> None:
        if event.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(recipe, runs / "b", observers=(stop,))
    compress(recipe, runs / "b")
    weights = "model/model.safetensors"
    assert sha256_file(runs / "a" / weights) == sha256_file(runs / "b" / weights)


def test_means_of_heads_need_no_text_to_fit(world, runs: Path) -> None:
    result = compress(recipe_for(world, pooling="mean", calibration=None), runs / "a")
    assert result.method == "mean"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kv_heads": None, "pooling": "mean"}, "--pooling mean is of key-value heads"),
        ({"calibration": None}, "--kv-heads needs --calibration"),
        ({"calibration": None, "pooling": "mean", "healing": HEALING}, "--heal needs --calibration"),
        ({"embedding_metric": "plain"}, "--embedding-metric plain is of factored tables"),
        ({"kv_heads": None, "embedding_rank": 4, "calibration": None}, "--embedding-rank needs --calibration"),
        ({"correction": "plain"}, "--correction plain is of what rounding loses"),
        ({"residual_rank": 4}, "--residual-rank corrects what rounding loses"),
        ({"residual_rank": 0, "quantize": "nf4"}, "--residual-rank: expected at least 1, got 0"),
        ({"residual_rank": 4, "quantize": "nf4", "keep": 0.5}, "--residual-rank beside --keep"),
        ({"residual_rank": 4, "quantize": "nf4", "kv_heads": None, "calibration": None}, "--residual-rank needs"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(world, given, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_for(world, **given)


def test_heads_that_do_not_divide_leave_the_folder_free(world, runs: Path) -> None:
    with pytest.raises(UsageError, match="kv_heads: expected a divisor of 2, got 3"):
        compress(recipe_for(world, kv_heads=3), runs / "a")
    assert compress(recipe_for(world, kv_heads=2), runs / "a").added_nats == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kv_heads": 3}, "expected a divisor of 2, got 3"),
        ({"embedding_rank": 1000}, "embedding rank: expected 1 to"),
        ({"quantize": "q8_0"}, "q8_0 expects a width"),
        (
            {"quantize": "nf4", "residual_rank": 20},
            "k_proj: residual rank: expected 1 to 16, got 20",
        ),  # after the heads
    ],
)
def test_what_a_later_lever_cannot_do_is_said_before_the_work_begins(world, runs, monkeypatch, given, said) -> None:
    monkeypatch.setattr("puna.jobs.compress.calibration_texts", lambda _: pytest.fail("the work has begun"))
    with pytest.raises(UsageError, match=said):
        compress(recipe_for(world, **given), runs / "a")


@pytest.mark.parametrize("to", ["int8", "nf4"])
def test_bits_come_after_low_rank_and_are_judged_by_the_weights_alone(world, runs: Path, to: Rounding) -> None:
    result = compress(recipe_for(world, kv_heads=None, keep=0.5, method="svd", quantize=to), runs / "a")
    assert result.method == f"svd+{to}"
    assert [lever.name for lever in result.levers] == ["low_rank", "bits"]
    assert result.levers[1].bytes < result.levers[0].bytes
    loaded = load(runs / "a")
    assert show(runs / "a").linears["low_rank"] == 14
    assert {type(linear) for _, linear in named_linears(loaded.llama)} == {RoundedLowRankLinear}
    gained = [
        evaluate_text(model.llama, model.tokenizer, world.judge.read_text()).nats_per_token
        for model in (load(world.run), loaded)
    ]
    assert gained[1] - gained[0] == pytest.approx(result.added_nats, abs=1e-6)


def test_a_correction_gives_back_what_rounding_lost(world, runs: Path) -> None:
    alone = compress(recipe_for(world, kv_heads=None, quantize="nf4", calibration=None), runs / "a")
    result = compress(recipe_for(world, kv_heads=None, quantize="nf4", residual_rank=16), runs / "b")
    assert (alone.method, result.method) == ("nf4", "nf4+alternating")
    assert abs(result.added_nats) < abs(alone.added_nats)
    with pytest.raises(UsageError, match=r"layers\.0\.mlp\.down_proj: q8_0 expects a width .* got 176"):
        compress(recipe_for(world, kv_heads=None, quantize="q8_0"), runs / "d")
    assert alone.bytes_after < result.bytes_after < result.bytes_before
    assert show(runs / "b").linears == {"corrected": 14}
    plain = recipe_for(world, kv_heads=None, quantize="int8", residual_rank=4, correction="plain", calibration=None)
    assert compress(plain, runs / "c").method == "int8+plain"


def test_smaller_tables_are_a_lever_among_others_and_heal(world, runs: Path) -> None:
    recipe = recipe_for(world, embedding_rank=24, keep=0.7, method="svd", quantize="int8", healing=HEALING)
    result = compress(recipe, runs / "a")
    assert result.method == "joint+svd+tables two-sided+int8"
    assert [lever.name for lever in result.levers] == ["kv_heads", "low_rank", "embeddings", "healing", "bits"]
    assert all(first.bytes >= second.bytes for first, second in pairwise(result.levers))
    assert "How many directions the tables need" in (runs / "a" / "report.html").read_text()
    loaded = load(runs / "a")
    assert isinstance(loaded.llama.embed_tokens, FactoredEmbedding)
    assert loaded.generate("the llama", max_new_tokens=4).text is not None
    with pytest.raises(UsageError, match="factored already"):
        compress(recipe_for(world, model=runs / "a" / "model", kv_heads=None, embedding_rank=8), runs / "b")
    alone = compress(
        recipe_for(world, kv_heads=None, embedding_rank=24, embedding_metric="plain", calibration=None), runs / "c"
    )
    assert (alone.method, alone.ranks) == ("tables plain", {})


def test_a_recipe_holds_its_heads(world, tmp_path: Path) -> None:
    given = {"calibration": world.text, "kv_heads": 1, "pooling": "mean", "quantize": "int8"}
    recipe = compress_recipe(model=str(world.run / "model"), training={}, **given)
    assert (recipe.kv_heads, recipe.pooling, recipe.wanted) == (1, "mean", None)
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    assert compress_recipe(model=str(world.run / "model"), training={}, recipe=tmp_path / "recipe.toml") == recipe
